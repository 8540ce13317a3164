"""The optimizer's memory of pruned weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.lookahead import is_pair, weights_of
from jaxprune.opt_state import flat_arrays, owners
from jaxprune.params import PyTree, flatten_with_paths, is_kept_whole


def clear_moments(opt_state: PyTree, params: PyTree, masks: PyTree, fresh: PyTree | None = None) -> PyTree:
    """Resets the optimizer's memory of pruned weights: moments, accumulated gradients, averages.

    It finds these arrays in the state of any optimizer by their paths (see `owners`). They have the shape of
    the parameter, or that shape with more axes in front (a history, as in L-BFGS), or they hold all weights in
    one row (`optax.flatten`). Arrays of other shapes are left as they are: Adafactor's and SM3's statistics of
    rows and columns, GaLore's projections.

    Args:
      opt_state: state of the inner optimizer.
      params: the parameters.
      masks: leaves that broadcast to them.
      fresh: state with the values for pruned weights, `inner.init(params)`; None for zeros.

    Returns:
      The state, in which the entries of kept weights are unchanged.
    """
    paths, weights, _ = flatten_with_paths(params)
    of_path = dict(zip(paths, zip(weights, jax.tree.leaves(masks), strict=True), strict=True))
    leaves, treedef = jax.tree.flatten(opt_state)
    news = [jnp.zeros((), leaf.dtype) if _is_float(leaf) else leaf for leaf in leaves]
    if fresh is not None and len(jax.tree.leaves(fresh)) == len(leaves):  # the first step may add some
        news = jax.tree.leaves(fresh)

    def clear(leaf: Any, owner: Any, new: Any) -> Any:
        if owner is None or owner.axis is not None or not _is_float(leaf):
            return leaf
        w, mask = of_path[owner.path]
        before = leaf.ndim - jnp.ndim(w)
        if is_kept_whole(mask) or leaf.shape[before:] != jnp.shape(w):
            return leaf
        mask = jnp.expand_dims(mask, tuple(range(before))) if before and jnp.ndim(mask) else mask
        return jnp.where(mask, leaf, new.astype(leaf.dtype))

    found = owners(opt_state, paths)
    new_leaves = [clear(*each) for each in zip(leaves, found, news, strict=True)]
    flat = flat_arrays(opt_state, found, sum(jnp.size(w) for w in weights))
    if flat:
        in_a_row = [jnp.broadcast_to(mask, jnp.shape(w)).ravel() for w, mask in of_path.values()]
        mask = jnp.concatenate(in_a_row)
        for i in flat:
            row = mask if leaves[i].ndim == 1 else mask[None]
            new_leaves[i] = jnp.where(row, leaves[i], news[i].astype(leaves[i].dtype))
    cleared = jax.tree.unflatten(treedef, new_leaves)
    if is_pair(params):  # most of the state mirrors the fast weights only
        return clear_moments(cleared, weights_of(params), weights_of(masks), fresh)
    return cleared


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.inexact)
