"""The arrays of a tree, which a compiled program takes, apart from its other leaves (functions, strings, numbers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxprune.params import PyTree
from jaxprune.tree_nodes import split_leaves


def split(tree: PyTree) -> tuple[list[Any], Callable[[Sequence[Any]], PyTree]]:
    """The arrays of a tree, and the function that makes the tree of other arrays in their place.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.healing.arrays import split
      >>> arrays, join = split({"name": "Dense", "w": jnp.ones(2)})
      >>> join([2 * array for array in arrays])
      {'name': 'Dense', 'w': Array([2., 2.], dtype=float32)}
    """
    return split_leaves(tree, is_array)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of any dtype, keys included."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
