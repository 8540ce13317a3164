"""Alternating compressed and decompressed training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation import Scope
from jaxprune.masking import Criterion, apply_masks
from jaxprune.params import PyTree
from jaxprune.scores import magnitude
from jaxprune.sparse_training._top_k import check_sparsity, top_k
from jaxprune.structures import Structure, Unstructured
from jaxprune.transforms._masked import check_given, masked_update
from jaxprune.transforms._moments import clear_moments
from jaxprune.transforms._placeholder import mappable
from jaxprune.transforms._update import update_if
from jaxprune.whole_numbers import check_whole


class ACDCState(NamedTuple):
    """count: steps so far; masks: all True in a dense phase; inner_state: that of the wrapped optimizer."""

    count: jax.Array
    masks: PyTree
    inner_state: Any


def ac_dc(
    inner: optax.GradientTransformation,
    sparsity: Any,
    *,
    begin: int,
    end: int,
    every: int,
    scope: Scope = "global",
    score: Callable[..., PyTree] = magnitude,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that dense and sparse phases of training alternate, and the last one is sparse.

    Steps before `begin` are dense. After that phases of `every` steps alternate, a sparse one first. From `end`
    on all steps are sparse. At the start of a sparse phase new masks are made from the present weights. At the
    start of a dense phase pruned weights train again, from 0, and the optimizer's moments of all weights are
    reset (step counts continue), as the paper does for momentum. If `end` falls into a sparse phase, the final
    phase keeps the masks of that phase.

    Args:
      inner: any optax optimizer.
      sparsity: fraction of the units to prune, in [0, 1), or a tree of them (an allocation).
      begin: first sparse step.
      end: first step of the final sparse phase, at least `begin`.
      every: number of steps of a phase.
      scope: "global" or "local".
      score: params -> scores, larger = keep.
      structure: how weights form units.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.

    Returns:
      A transformation whose state is an `ACDCState`.

    Raises:
      ValueError: if `end` is before `begin`, or as `make_masks` does; if `params` is not passed to `update`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[2.0, 1.0]])}
      >>> tx = jp.sparse_training.ac_dc(optax.sgd(1.0), 0.5, begin=1, end=3, every=1)
      >>> state = tx.init(params)
      >>> for _ in range(4):  # dense, sparse, dense, sparse
      ...     updates, state = tx.update({"w": jnp.array([[0.0, -3.0]])}, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["w"])
      [[2. 4.]]
      [[0. 7.]]
      [[ 0. 10.]]
      [[ 0. 13.]]

    References:
      Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks, 2021,
      arXiv:2106.12379.
    """
    inner = optax.with_extra_args_support(inner)
    criterion = Criterion(structure, scope, where)
    check_sparsity(sparsity, structure)
    check_whole(at_least=0, begin=begin, end=end)
    check_whole(every=every)
    if end < begin:
        raise ValueError(f"`end` must not be before `begin`, got begin={begin}, end={end}.")

    def is_sparse(step: jax.Array) -> jax.Array:
        return (step >= begin) & ((step >= end) | ((step - begin) // every % 2 == 0))

    def init_fn(params: PyTree) -> ACDCState:
        masks = criterion.units(params).full_masks()
        return ACDCState(jnp.zeros([], jnp.int32), masks, inner.init(params))

    def update_fn(updates: PyTree, state: ACDCState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        now, before = is_sparse(state.count), is_sparse(state.count - 1)

        def turn(masks: PyTree) -> PyTree:
            new = top_k(params, sparsity, criterion, score)
            return jax.tree.map(lambda mask, m: jnp.where(now, m, True) if m.ndim else mask, masks, new)

        masks = update_if(now != before, turn, state.masks)
        opens = before & ~now
        kept = jax.tree.map(lambda m: m & ~opens, masks)
        fresh = inner.init(apply_masks(params, masks))
        inner_state = clear_moments(state.inner_state, params, kept, fresh)
        new_updates, inner_state = masked_update(inner, updates, inner_state, params, masks, extra_args)
        return new_updates, ACDCState(optax.safe_increment(state.count), masks, inner_state)

    return optax.GradientTransformationExtraArgs(mappable(init_fn, ACDCState, inner), update_fn)
