"""Parts of an optimizer state that mirror the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.params import PyTree


def clear_moments(opt_state: PyTree, params: PyTree, masks: PyTree, fresh: PyTree | None = None) -> PyTree:
    """Resets the optimizer's memory of pruned weights: moments, accumulated gradients, averages.

    It finds them in the state of any optimizer, by shape and not by name: every subtree with the tree
    structure of the parameters (leaves may be missing, as muon has them) is one, leaf by leaf where the
    shapes are equal.

    Args:
      opt_state: state of the inner optimizer.
      params: the parameters.
      masks: leaves that broadcast to them; scalars leave their parameter alone.
      fresh: state whose values to take for pruned weights, `inner.init(params)`; None for zeros.

    Returns:
      The state with the kept weights' entries as they were.
    """
    structure = jax.tree.structure(params)
    param_leaves, mask_leaves = jax.tree.leaves(params), jax.tree.leaves(masks)

    def is_hole(node: Any) -> bool:
        return isinstance(node, optax.MaskedNode)

    def mirrors(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=is_hole) == structure

    def clear(node: Any, new: Any) -> Any:
        if not mirrors(node):
            return node
        leaves = jax.tree.leaves(node, is_leaf=is_hole)
        news = [None] * len(leaves) if new is None else jax.tree.leaves(new, is_leaf=is_hole)
        cleared = []
        for leaf, other, w, mask in zip(leaves, news, param_leaves, mask_leaves, strict=True):
            same = hasattr(leaf, "shape") and leaf.shape == w.shape and jnp.ndim(mask) > 0
            value = jnp.zeros((), leaf.dtype) if other is None and same else other
            cleared.append(jnp.where(mask, leaf, value) if same else leaf)
        return jax.tree.unflatten(structure, cleared)

    parts, treedef = jax.tree.flatten(opt_state, is_leaf=mirrors)
    others = [None] * len(parts) if fresh is None else jax.tree.leaves(fresh, is_leaf=mirrors)
    return jax.tree.unflatten(
        treedef, [clear(part, other) for part, other in zip(parts, others, strict=True)]
    )
