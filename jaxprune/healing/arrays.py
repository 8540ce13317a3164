"""The arrays of a tree, which a compiled program takes, apart from its other leaves (functions, strings, numbers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxprune.params import PyTree


def split(tree: PyTree) -> tuple[list[Any], Callable[[list[Any]], PyTree]]:
    """The arrays of a tree, and the function that makes the tree of other arrays in their place.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.healing.arrays import split
      >>> arrays, join = split({"name": "Dense", "w": jnp.ones(2)})
      >>> join([2 * array for array in arrays])
      {'name': 'Dense', 'w': Array([2., 2.], dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

    def join(arrays: list[Any]) -> PyTree:
        found = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            found[i] = array
        return jax.tree.unflatten(treedef, found)

    return [leaves[i] for i in places], join


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of any dtype, keys included."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
