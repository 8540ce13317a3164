"""One compiled program for each recipe at a sparsity: all seeds, one after the other, all steps.

The programs that all recipes share, for the initial parameters and for evaluating the final ones, compile once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.experiments.classification import Classification
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.masking.share import kept_per_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.recipes import Recipe

_SCORED_IMAGES = 500  # for scores from gradients at initialization


Program = Callable[["Keys", PyTree], tuple[PyTree, dict[str, jax.Array]]]


class Keys(NamedTuple):
    """Typed keys of one seed, or (seeds,): one stream for each use, the same for all recipes."""

    weights: jax.Array
    batches: jax.Array
    scores: jax.Array
    recipe: jax.Array


def keys(settings: CompareSettings) -> Keys:
    """The key streams of each seed; those of the first n seeds don't depend on the number of seeds."""
    root = jax.random.key(settings.seed)
    of_seed = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), len(Keys._fields)))
    return Keys(*of_seed(jnp.arange(settings.seeds)).T)


def fresh_params(task: Classification, of_seeds: Keys) -> PyTree:
    """The initial parameters of every recipe, with a leading axis of seeds."""
    return jax.jit(lambda of_each: jax.lax.map(task.init_fn, of_each))(of_seeds.weights)


def measure(task: Classification) -> Callable[[PyTree], dict[str, jax.Array]]:
    """Parameters with a leading axis of seeds -> loss and accuracy of each."""
    return jax.jit(lambda params: jax.lax.map(task.measure, params))


def compile_program(settings: CompareSettings, task: Classification, recipe: Recipe | None) -> Program:
    """The program of a recipe: (keys, parameters) -> (trained parameters, number of kept weights of each layer).

    All arguments and results have a leading axis of seeds. The seeds run one after the other, not under `vmap`,
    which would turn every `lax.cond` into a select, so that masks would be remade at every step. The recipe None
    is the dense network.
    """

    def train(of_seed: Keys, params: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        where = _where(recipe, params)
        if recipe is not None and len(trainings := recipe.trainings(settings.steps)) > 1:
            tx = jp.masked(_optimizer(settings, trainings[0]))
            experiment = recipe.experiment(task.train_step, task.batch_fn, steps=settings.steps, where=where)
            state, _ = experiment.run(of_seed.batches, _state(params, tx))
        else:
            state = jax.lax.fori_loop(
                0,
                settings.steps,
                lambda step, state: task.train_step(state, task.batch_fn(of_seed.batches, step))[0],
                _state(params, _transform(settings, task, recipe, of_seed, params, where)),
            )
        return state.params, _kept(state.params, jp.get_masks(state.opt_state))

    of_seeds = jax.eval_shape(lambda: keys(settings))
    params = jax.eval_shape(jax.vmap(task.init_fn), of_seeds.weights)
    program = jax.jit(lambda *of_all: jax.lax.map(lambda of_each: train(*of_each), of_all))
    return program.lower(of_seeds, params).compile()


def _transform(
    settings: CompareSettings,
    task: Classification,
    recipe: Recipe | None,
    of_seed: Keys,
    params: PyTree,
    where: PyTree | None,
) -> optax.GradientTransformationExtraArgs:
    inner = _optimizer(settings, settings.steps)
    if recipe is None:
        chosen = jp.prunable(params)
        return jp.masked(
            inner, jax.tree.map(lambda w, at: jnp.ones(w.shape, bool) if at else True, params, chosen)
        )
    return recipe.transform(
        inner,
        params,
        steps=settings.steps,
        key=of_seed.recipe,
        loss_fn=task.loss_fn,
        batches=[task.draw(of_seed.scores, _SCORED_IMAGES)],
        fn=task.logits,
        inputs=(task.train.images[:1],),
        where=where,
    )


def _optimizer(settings: CompareSettings, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, steps))


def _state(params: PyTree, tx: optax.GradientTransformation) -> TrainState:
    state: Any = TrainState.create(apply_fn=None, params=params, tx=tx)
    return state.replace(step=jnp.zeros([], jnp.int32))


def _where(recipe: Recipe | None, params: PyTree) -> PyTree | None:
    """The leaves to prune; None for the default. Units are not pruned in the output layer: there they are classes."""
    if recipe is None or recipe.structure == jp.Unstructured():
        return None
    last = [path for path in flatten_with_paths(params)[0] if path.endswith("/kernel")][-1]
    return jp.prunable(params, exclude=(last,))


def _kept(params: PyTree, masks: PyTree) -> dict[str, jax.Array]:
    paths, _, _ = flatten_with_paths(params)
    kept, _ = kept_per_leaf(params, masks)
    of_leaves = zip(paths, kept, jax.tree.leaves(masks), strict=True)
    return {path: jnp.asarray(k, jnp.int32) for path, k, mask in of_leaves if mask.ndim}
