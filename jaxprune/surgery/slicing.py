"""Slicing arrays to the kept units of a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def shrink_leaf(path: str, leaf: Any, shape: Sequence[int], kept: Sequence[np.ndarray | None]) -> Any:
    """Slices an array of a parameter's shape; axes of size 1 and scalars broadcast and stay as they are.

    Raises:
      ValueError: the array does not broadcast to the parameter.
    """
    have = np.shape(leaf)
    if have == ():
        return leaf
    if len(have) != len(shape) or any(n not in (1, m) for n, m in zip(have, shape, strict=True)):
        raise ValueError(f"{path!r} must have shape {tuple(shape)}, as in the plan, got {tuple(have)}.")
    return take(leaf, [mask if n != 1 else None for n, mask in zip(have, kept, strict=True)])


def take(leaf: Any, kept: Sequence[np.ndarray | None]) -> Any:
    """Slices an array, or the shape of an abstract one, by a mask for each axis."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        shape = tuple(n if m is None else int(m.sum()) for n, m in zip(leaf.shape, kept, strict=True))
        return jax.ShapeDtypeStruct(shape, leaf.dtype)
    for dim, mask in enumerate(kept):
        if mask is not None and not mask.all():
            chosen = np.flatnonzero(mask)
            leaf = np.take(leaf, chosen, dim) if isinstance(leaf, np.ndarray) else jnp.take(leaf, chosen, dim)
    return leaf
