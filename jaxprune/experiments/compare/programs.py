"""One compiled program for each method: all seeds, one after the other, all steps, at any sparsity."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxprune as jp
from jaxprune.experiments.classification import Classification
from jaxprune.experiments.compare.combinations import Method, leaves_to_prune
from jaxprune.experiments.compare.outcome import Trained
from jaxprune.experiments.compare.removal import run_removal
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.experiments.compare.start import SCORED_IMAGES, Keys, first_state, keys
from jaxprune.masking.share import kept_per_leaf
from jaxprune.params import PyTree, flatten_with_paths


class Program(NamedTuple):
    """A compiled method: run(sparsity, keys, parameters) -> Trained; seconds: of compilation."""

    run: Callable[[float, Keys, PyTree], Trained]
    seconds: float


def curve_steps(settings: CompareSettings, recipe: jp.Recipe) -> tuple[int, ...]:
    """The steps of all trainings at which the learning curve is evaluated, counted through; -1 for none."""
    trainings = recipe.trainings(settings.steps)
    if recipe.removes:  # only at the end of each training
        return tuple(itertools.accumulate(trainings))
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
    would be remade at every step. A method that removes units is a loop on the host, and compiles as it runs.
    """

    if method.recipe(method.sparsities[0]).removes:
        return Program(lambda *of: run_removal(settings, task, method.recipe, *of), 0.0)

    def train(sparsity: Any, of_seed: Keys, params: PyTree) -> Trained:
        recipe = method.recipe(sparsity)
        trainings = recipe.trainings(settings.steps)
        experiment: Any = recipe.experiment(
            task.train_step,
            task.batch_fn,
            steps=settings.steps,
            where=leaves_to_prune(recipe.structure, params),
            evaluate=task.evaluate,
            every=_every(settings, trainings),
            params=params,
            loss_fn=task.loss_fn,
            batches=[task.draw(of_seed.scores, SCORED_IMAGES)],
            fn=task.logits,
            inputs=(task.train.images[:1],),
        )
        whole = settings.steps if recipe.continues else trainings[0]
        state, history = experiment.run(of_seed.training, first_state(settings, params, whole))
        masks = jp.get_masks(state.opt_state)
        return Trained(state.params, masks, _kept(state.params, masks), history.evaluation, history.curve)

    def of_all(sparsity: Any, of_seeds: Keys, params: PyTree) -> Trained:
        made = jax.lax.map(lambda of_each: train(sparsity, *of_each), (of_seeds, params))
        params, masks = jax.tree.map(lambda x: x[0], (made.params, made.pruned))
        return made._replace(params=params, pruned=masks)

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


def _kept(params: PyTree, masks: PyTree) -> dict[str, jax.Array]:
    paths, _, _ = flatten_with_paths(params)
    kept, _ = kept_per_leaf(params, masks)
    of_leaves = zip(paths, kept, jax.tree.leaves(masks), strict=True)
    return {path: jnp.asarray(k, jnp.int32) for path, k, mask in of_leaves if mask.ndim}
