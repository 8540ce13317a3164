"""From what every method starts: keys, parameters and optimizer of each seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from jaxprune.experiments.classification import Classification
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.params import PyTree

SCORED_IMAGES = 500  # for scores from gradients


class Keys(NamedTuple):
    """Typed keys of one seed, or (seeds,): one stream for each use, the same for all methods."""

    weights: jax.Array
    training: jax.Array
    scores: jax.Array


def keys(settings: CompareSettings) -> Keys:
    """The key streams of each seed; those of the first n seeds don't depend on the number of seeds."""
    root = jax.random.key(settings.seed)
    of_seed = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(root, i), len(Keys._fields)))
    return Keys(*of_seed(jnp.arange(settings.seeds)).T)


def fresh_params(task: Classification, of_seeds: Keys) -> PyTree:
    """The initial parameters of every method, with a leading axis of seeds."""
    return jax.jit(lambda of_each: jax.lax.map(task.init_fn, of_each))(of_seeds.weights)


def first_state(settings: CompareSettings, params: PyTree, steps: int) -> TrainState:
    """The state before the first step; the learning rate decays over so many steps."""
    rate = settings.learning_rate
    schedule: Any = optax.cosine_decay_schedule(rate, steps) if settings.decay == "cosine" else rate
    state: Any = TrainState.create(apply_fn=None, params=params, tx=optax.adam(schedule))
    return state.replace(step=jnp.zeros([], jnp.int32))
