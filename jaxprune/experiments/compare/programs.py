"""One compiled program for each method: all seeds, one after the other, all steps, at any sparsity.

The programs that all methods share, for the initial parameters and for evaluating the final ones, compile once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.experiments.classification import Classification
from jaxprune.experiments.compare.combinations import Method, leaves_to_prune
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.masking.share import kept_per_leaf
from jaxprune.params import PyTree, flatten_with_paths

_SCORED_IMAGES = 500  # for scores from gradients at initialization


class Keys(NamedTuple):
    """Typed keys of one seed, or (seeds,): one stream for each use, the same for all methods."""

    weights: jax.Array
    training: jax.Array
    scores: jax.Array


class Trained(NamedTuple):
    """What a program returns; every leaf has a leading axis of seeds.

    params, masks: at the end; kept: path -> number of kept weights; rounds, curve: metrics at the end of each
    training (trainings,), and within (trainings, points).
    """

    params: PyTree
    masks: PyTree
    kept: dict[str, jax.Array]
    rounds: dict[str, jax.Array]
    curve: dict[str, jax.Array]


class Program(NamedTuple):
    """A compiled method: run(sparsity, keys, parameters) -> Trained; seconds: of compilation."""

    run: Callable[[float, Keys, PyTree], Trained]
    seconds: float


def keys(settings: CompareSettings) -> Keys:
    """The key streams of each seed; those of the first n seeds don't depend on the number of seeds."""
    root = jax.random.key(settings.seed)
    of_seed = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), len(Keys._fields)))
    return Keys(*of_seed(jnp.arange(settings.seeds)).T)


def fresh_params(task: Classification, of_seeds: Keys) -> PyTree:
    """The initial parameters of every method, with a leading axis of seeds."""
    return jax.jit(lambda of_each: jax.lax.map(task.init_fn, of_each))(of_seeds.weights)


def curve_steps(settings: CompareSettings, trainings: tuple[int, ...]) -> tuple[int, ...]:
    """The steps of all trainings at which the learning curve is evaluated, counted through."""
    every, found, before = _every(settings, trainings), [], 0
    for steps in trainings:
        longest = max(trainings)
        found += [before + s if s <= steps else -1 for s in range(every, longest + 1, every)]
        before += steps
    return tuple(found)


def compile_program(settings: CompareSettings, task: Classification, method: Method) -> Program:
    """The program of a method.

    It is compiled once for all sparsities where the method takes a traced one, else once for each of them. The
    seeds run one after the other, not under `vmap`, which would turn every `lax.cond` into a select, so that masks
    would be remade at every step.
    """

    def train(sparsity: Any, of_seed: Keys, params: PyTree) -> Trained:
        recipe = method.recipe(sparsity)
        trainings = recipe.trainings(settings.steps)
        experiment = recipe.experiment(
            task.train_step,
            task.batch_fn,
            steps=settings.steps,
            where=leaves_to_prune(recipe.structure, params),
            evaluate=task.evaluate,
            every=_every(settings, trainings),
            params=params,
            loss_fn=task.loss_fn,
            batches=[task.draw(of_seed.scores, _SCORED_IMAGES)],
            fn=task.logits,
            inputs=(task.train.images[:1],),
        )
        whole = settings.steps if recipe.continues else trainings[0]
        state, history = experiment.run(of_seed.training, _state(settings, params, whole))
        masks = jp.get_masks(state.opt_state)
        return Trained(state.params, masks, _kept(state.params, masks), history.evaluation, history.curve)

    def of_all(sparsity: Any, of_seeds: Keys, params: PyTree) -> Trained:
        return jax.lax.map(lambda of_each: train(sparsity, *of_each), (of_seeds, params))

    of_seeds = jax.eval_shape(lambda: keys(settings))
    params = jax.eval_shape(jax.vmap(task.init_fn), of_seeds.weights)
    begun = time.perf_counter()
    if len(method.sparsities) > 1:
        try:
            lowered = jax.jit(of_all).lower(jax.ShapeDtypeStruct((), jnp.float32), of_seeds, params)
        except (TypeError, ValueError):
            pass  # the method needs a known sparsity
        else:
            whole = lowered.compile()
            return Program(
                lambda s, *rest: whole(jnp.asarray(s, jnp.float32), *rest), time.perf_counter() - begun
            )
    of_each = {
        s: jax.jit(lambda *rest, s=s: of_all(s, *rest)).lower(of_seeds, params).compile()
        for s in method.sparsities
    }
    return Program(lambda s, *rest: of_each[s](*rest), time.perf_counter() - begun)


def _every(settings: CompareSettings, trainings: tuple[int, ...]) -> int:
    return max(min(settings.steps // settings.evaluations, *trainings), 1)


def _state(settings: CompareSettings, params: PyTree, steps: int) -> TrainState:
    rate = settings.learning_rate
    schedule: Any = optax.cosine_decay_schedule(rate, steps) if settings.decay == "cosine" else rate
    state: Any = TrainState.create(apply_fn=None, params=params, tx=optax.adam(schedule))
    return state.replace(step=jnp.zeros([], jnp.int32))


def _kept(params: PyTree, masks: PyTree) -> dict[str, jax.Array]:
    paths, _, _ = flatten_with_paths(params)
    kept, _ = kept_per_leaf(params, masks)
    of_leaves = zip(paths, kept, jax.tree.leaves(masks), strict=True)
    return {path: jnp.asarray(k, jnp.int32) for path, k, mask in of_leaves if mask.ndim}
