"""Applying masks to parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.params import PyTree, mask_leaves


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Sets pruned weights to zero: `where(mask, w, 0)`, so that a pruned NaN becomes 0.

    Args:
      params: pytree of arrays.
      masks: the masks of these parameters.

    Returns:
      Tree like `params`, with the same dtypes.

    Raises:
      ValueError: if the trees don't match, or a mask doesn't broadcast to its parameter.
      TypeError: if a mask is not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.apply_masks({"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.array([True, False])})
      {'w': Array([1., 0.], dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(params)
    return jax.tree.unflatten(
        treedef, [masked_leaf(w, mask) for w, mask in zip(leaves, mask_leaves(params, masks), strict=True)]
    )


def masked_leaf(w: Any, mask: Any) -> Any:
    """`where(mask, w, 0)`; a leaf that is not prunable is returned as it is."""
    if isinstance(mask, bool | np.bool_) and mask:
        return w
    return jnp.where(mask, w, jnp.zeros((), jnp.asarray(w).dtype))
