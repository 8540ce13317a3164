"""The compiled programs of `jaxprune imp`: a round of all seeds, and a control of all seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune._imp import IMP, Carry, Round
from jaxprune.experiments.classification import classification
from jaxprune.experiments.data import Data
from jaxprune.experiments.settings import Settings
from jaxprune.params import PyTree

# Seeds are the leading axis of everything but the number of the round: with one for each seed, `cond` on it
# would become a select, and every round would do both of its branches.
_CARRY = Carry(None, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]
_ROW = Round(None, 0, 0, 0, 0, 0, 0)  # pyright: ignore[reportArgumentType]


class Keys(NamedTuple):
    """Typed keys (seeds,), one stream for each use."""

    batches: jax.Array
    weights: jax.Array
    reinitialized: jax.Array
    random: jax.Array


@dataclasses.dataclass(frozen=True)
class Programs:
    """The functions of the experiment; every argument and result has a leading axis of seeds.

    first: () -> the carry before round 0. round: carry -> (carry, row). reinitialized, random: (masks, round)
    -> row of the control under these masks.
    """

    first: Callable[[], Carry]
    round: Callable[[Carry], tuple[Carry, Round]]
    reinitialized: Callable[[PyTree, int], Round]
    random: Callable[[PyTree, int], Round]
    initial: Callable[[], PyTree]


class Traced(NamedTuple):
    """The traced programs, before anything is compiled.

    carry, row, control: the abstract results of a round and of a control; compile: () -> the programs.
    """

    carry: Carry
    row: Round
    control: Round
    compile: Callable[[], Programs]


def keys(settings: Settings) -> Keys:
    """The key streams of each seed; those of the first n seeds don't depend on the number of seeds."""
    root = jax.random.key(settings.seed)
    of_seed = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), len(Keys._fields)))
    return Keys(*of_seed(jnp.arange(settings.seeds)).T)


def compile_programs(settings: Settings, data: Data) -> Programs:
    """Traces and compiles all of them."""
    return trace_programs(settings, data).compile()


def trace_programs(settings: Settings, data: Data) -> Traced:
    """Traces all of them; the library raises its errors about the settings here."""
    imp, fresh = experiment(settings, data)
    streams = keys(settings)
    draw = jax.jit(jax.vmap(fresh))
    start = jax.jit(jax.vmap(imp.init, out_axes=_CARRY))

    def fold(of_seeds: jax.Array, round: int) -> jax.Array:
        return jax.vmap(jax.random.fold_in, (0, None))(of_seeds, round)

    reinitialize = jax.jit(lambda round: jax.vmap(fresh)(fold(streams.reinitialized, round)))

    def at_random(key: jax.Array, masks: PyTree) -> PyTree:
        return jp.shuffle_masks(masks, imp.structure, key=key)

    shuffle = jax.jit(lambda masks, round: jax.vmap(at_random)(fold(streams.random, round), masks))

    def train(of_seeds: jax.Array, states: TrainState, masks: PyTree) -> Round:
        _, row = jax.vmap(imp.train, out_axes=(0, _ROW))(of_seeds, states, masks)
        return row._replace(masks=())

    abstract_initial = jax.eval_shape(draw, streams.weights)
    first_carry = jax.eval_shape(start, streams.batches, abstract_initial)
    step = jax.jit(jax.vmap(imp.step, in_axes=(_CARRY,), out_axes=(_CARRY, _ROW))).lower(first_carry)
    control = jax.jit(train).lower(streams.batches, abstract_initial, first_carry.masks)

    def compile_all() -> Programs:
        with ThreadPoolExecutor(2) as pool:
            run_round, run_control = pool.map(lambda lowered: lowered.compile(), (step, control))
        initial = draw(streams.weights)
        return Programs(
            first=lambda: start(streams.batches, initial),
            round=run_round,
            reinitialized=lambda masks, r: run_control(
                fold(streams.reinitialized, r), reinitialize(r), masks
            ),
            random=lambda masks, r: run_control(fold(streams.random, r), initial, shuffle(masks, r)),
            initial=lambda: initial.params,
        )

    carry, row = step.out_info
    return Traced(_abstract(carry), _abstract(row), _abstract(control.out_info), compile_all)


def experiment(settings: Settings, data: Data) -> tuple[IMP, Callable[[jax.Array], TrainState]]:
    """The experiment of one seed, and its initial state: key -> state."""
    task = classification(settings.model, data, settings.batch_size)
    tx = jp.masked(optax.adam(settings.learning_rate))

    def fresh(key: jax.Array) -> TrainState:
        return TrainState.create(apply_fn=task.model.apply, params=task.init_fn(key), tx=tx)

    params = jax.eval_shape(task.init_fn, jax.random.key(0))
    output = _output_layer(params)
    exclude = ()
    if settings.structure == "channels":
        exclude = (f"{output}/kernel",)
    elif settings.structure == "2:4" and settings.model == "cnn":
        exclude = ("Conv_0/kernel",)  # it has one input channel
    rate: Any = settings.rate
    if settings.scope == "local":
        rate = {
            layer: dict.fromkeys(of, settings.rate_of_output if layer == output else settings.rate)
            for layer, of in params.items()
        }
    imp = jp.imp(
        task.train_step,
        task.batch_fn,
        steps=settings.steps,
        rounds=settings.rounds,
        rate=rate,
        scope=settings.scope,
        structure=_structure(settings.structure),
        where=jp.prunable(params, exclude=exclude),
        rewind=_rewind(settings, task.init_fn),
        evaluate=task.evaluate,
        every=settings.evaluate_every,
        keep_masks=True,
    )
    return imp, fresh


def _structure(name: str) -> jp.Unstructured | jp.Channels | jp.Block | jp.NM:
    match name:
        case "channels":
            return jp.Channels()
        case "blocks":
            return jp.Block((4, 4))
        case "2:4":
            return jp.NM(2, 4)
    return jp.Unstructured()


def _rewind(settings: Settings, init_fn: Callable[[jax.Array], PyTree]) -> Any:
    match settings.rewind:
        case "lr":
            return jp.RewindLearningRate(settings.rewind_step)
        case "finetune":
            return jp.Finetune()
        case "reinitialize":
            return jp.Reinitialize(init_fn)
    return jp.Rewind(settings.rewind_step)


def _output_layer(params: PyTree) -> str:
    """The last dense layer, by its number."""
    return max((name for name in params if name.startswith("Dense_")), key=lambda name: int(name[6:]))


def _abstract(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
