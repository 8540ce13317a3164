"""Sparse evolutionary training: drop by magnitude, grow at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxprune.meshes import placed_like
from jaxprune.params import PyTree, is_float_array
from jaxprune.scores import magnitude, random
from jaxprune.sparse_training._dynamic import dynamic
from jaxprune.structures import Structure, Unstructured


def set(
    inner: optax.GradientTransformation,
    sparsity: Any = None,
    *,
    end: int,
    every: int = 100,
    fraction: float = 0.3,
    masks: PyTree | None = None,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    key: jax.Array,
    score: Callable[..., PyTree] = magnitude,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains a fixed number of weights of each layer, at positions that change.

    At the steps t = every, 2 every, ... before `end`, each layer with k kept weights drops the `round(f_t k)` of
    smallest magnitude and grows as many at random: `f_t = fraction / 2 (1 + cos(pi t / end))`. As in `rigl`,
    such a step changes the masks and nothing else.

    Args:
      inner: any optax optimizer.
      sparsity: fraction of each leaf to prune, in [0, 1), or a tree of them (an allocation), for random initial
        masks.
      end: step from which the masks no longer move.
      every: number of steps between two moves of the masks.
      fraction: fraction of the kept weights that is dropped and regrown at first.
      masks: initial masks instead of `sparsity`: a tree, a prefix of one, or a function of the parameters.
      structure: how weights form units, but not `NM`.
      where: the leaves whose masks move: a tree of bools, a prefix of one, or a function of the parameters that
        returns one; None for `prunable(params)`, or for the leaves that `masks` prunes.
      key: a `jax.random.key`; may be traced: under `vmap` over replicates build the wrapper inside.
      score: params -> scores, or (params, key) -> scores: the lowest kept ones are dropped.

    Returns:
      A transformation whose state is a `DynamicState`.

    Raises:
      ValueError: if neither or both of `sparsity` and `masks` are given, or the fraction is outside [0, 1]; at
        `init`, as `make_masks` does; if `params` is not passed to `update`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      >>> masks = {"w": jnp.array([[True, True, False, False]])}
      >>> tx = jp.sparse_training.set(
      ...     optax.sgd(0.0), masks=masks, end=10, every=1, fraction=0.6, key=jax.random.key(0))
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(params, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> jp.get_masks(state)["w"].astype(int)
      Array([[1, 0, 0, 1]], dtype=int32)

    References:
      Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity inspired
      by Network Science, 2017, arXiv:1707.04780.
    """

    def grow(updates: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        del updates
        scores = random(params, jax.random.fold_in(key, step))
        return jax.tree.map(lambda s, w: placed_like(s, w) if is_float_array(w) else s, scores, params)

    return dynamic(inner, grow, sparsity, masks, end, every, fraction, structure, where, key, score)
