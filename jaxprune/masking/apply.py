"""Masks on parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.params import PyTree, mask_leaves


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Parameters with pruned weights at zero: `where(mask, w, 0)`, so that NaN under a mask becomes 0.

    Args:
      params: pytree of arrays.
      masks: its masks.

    Returns:
      Tree like `params`, dtypes kept.

    Raises:
      ValueError: trees that don't match, or a mask that doesn't broadcast to its parameter.
      TypeError: a mask that is not bool.

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
    """`where(mask, w, 0)`, with nothing to do for a leaf that is not prunable."""
    if isinstance(mask, bool | np.bool_) and mask:
        return w
    return jnp.where(mask, w, jnp.zeros((), jnp.asarray(w).dtype))
