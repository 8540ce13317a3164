"""Dense weights that are trained through masks of the largest ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation import Scope
from jaxprune.lookahead import refuse_pair
from jaxprune.masking import Criterion
from jaxprune.params import PyTree, is_float_array
from jaxprune.scores import magnitude
from jaxprune.sparse_training._top_k import check_sparsity, top_k
from jaxprune.structures import Structure, Unstructured
from jaxprune.transforms._masked import check_given
from jaxprune.transforms._placeholder import mappable
from jaxprune.transforms._scheduled import check_schedule
from jaxprune.transforms._update import update_if
from jaxprune.whole_numbers import check_whole


class STEState(NamedTuple):
    """count: steps so far; masks: those of the weights after the last update; inner_state."""

    count: jax.Array
    masks: PyTree
    inner_state: Any


def ste(
    inner: optax.GradientTransformation,
    sparsity: Any,
    *,
    decay: float = 0.0,
    every: int = 1,
    scope: Scope = "global",
    score: Callable[..., PyTree] = magnitude,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains all weights through masks that keep the largest of them.

    Compute the loss at `straight_through(params, jp.get_masks(opt_state))`. The gradient then reaches all
    weights, and pruned weights that become large enough are kept again. The masks in the state are those of the
    updated weights. The weights remain dense: deploy `jp.apply_masks(params, jp.get_masks(opt_state))`.

    Args:
      inner: any optax optimizer.
      sparsity: fraction of the units to prune, in [0, 1): a number, a tree of them (an allocation), or a
        schedule, step -> sparsity.
      decay: adds `decay * w` to the gradient of pruned weights (see `sr_ste`).
      every: number of steps between two updates of the masks.
      scope: "global" or "local".
      score: params -> scores, larger = keep.
      structure: how weights form units.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.

    Returns:
      A transformation whose state is an `STEState`.

    Raises:
      ValueError: if the sparsity is outside [0, 1); at `init`, as `make_masks` does; if `params` is not passed to
        `update`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> def loss(params, masks):
      ...     return ((jp.sparse_training.straight_through(params, masks)["w"] - 3) ** 2).sum()
      >>> params = {"w": jnp.array([[2.0, 1.0]])}
      >>> tx = jp.sparse_training.ste(optax.sgd(0.25), 0.5)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     grads = jax.grad(loss)(params, jp.get_masks(state))
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["w"], jp.get_masks(state)["w"].astype(int))
      [[2.5 2.5]] [[0 1]]
      [[4.   2.75]] [[1 0]]

    References:
      Bengio, Leonard, Courville, Estimating or Propagating Gradients Through Stochastic Neurons for
      Conditional Computation, 2013, arXiv:1308.3432.
    """
    inner = optax.with_extra_args_support(inner)
    criterion = Criterion(structure, scope, where)
    check_sparsity(sparsity, structure)
    check_whole(every=every)
    if decay < 0:
        raise ValueError(f"`decay` must be at least 0, got {decay}.")

    def masks_of(params: PyTree, step: jax.Array) -> PyTree:
        share = sparsity
        if callable(sparsity):  # a share, or a tree of shares
            share = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), sparsity(step))
        return top_k(params, share, criterion, score)

    def init_fn(params: PyTree) -> STEState:
        refuse_pair(params, "ste")
        if callable(sparsity):
            check_schedule(sparsity, structure, criterion.units(params))
        count = jnp.zeros([], jnp.int32)
        return STEState(count, masks_of(params, count), inner.init(params))

    def update_fn(updates: PyTree, state: STEState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)

        def decayed(u: jax.Array, m: jax.Array, w: jax.Array) -> jax.Array:
            if not is_float_array(w):
                return u
            return u + decay * jnp.where(m, jnp.zeros((), w.dtype), w).astype(u.dtype)

        if decay:
            updates = jax.tree.map(decayed, updates, state.masks, params)
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        count = optax.safe_increment(state.count)

        def renew(masks: PyTree) -> PyTree:
            del masks
            return masks_of(optax.apply_updates(params, updates), count)

        masks = update_if(count % every == 0, renew, state.masks)
        return updates, STEState(count, masks, inner_state)

    return optax.GradientTransformationExtraArgs(mappable(init_fn, STEState, inner), update_fn)
