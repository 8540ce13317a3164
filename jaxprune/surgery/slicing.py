"""Slicing arrays to the kept units of a parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.meshes import is_explicit
from jaxprune.surgery.inference.kept import small_shape


def shrink_leaf(path: str, leaf: Any, shape: Sequence[int], kept: Sequence[np.ndarray | None]) -> Any:
    """Slices an array of a parameter's shape; axes of size 1 and scalars broadcast and are left unchanged.

    Raises:
      ValueError: if the array does not broadcast to the parameter.
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
        shape = small_shape(leaf.shape, kept)
        return jax.ShapeDtypeStruct(shape, leaf.dtype)
    chosen = {dim: np.flatnonzero(m) for dim, m in enumerate(kept) if m is not None and not m.all()}
    return take_entries(leaf, chosen)


def take_entries(leaf: Any, chosen: Mapping[int, np.ndarray]) -> Any:
    """Takes entries along axes: dimension -> their positions, in the order of the result."""
    if not chosen:
        return leaf
    if on_host(leaf):
        array = np.asarray(leaf)
        for dim, index in chosen.items():
            array = np.take(array, index, dim)
        return jnp.asarray(array)
    for dim, index in chosen.items():
        leaf = np.take(leaf, index, dim) if isinstance(leaf, np.ndarray) else _take(leaf, index, dim)
    return leaf


def _take(leaf: Any, index: np.ndarray, dim: int) -> Any:
    """Takes entries along an axis; with explicit mesh axes the result keeps its sharding if the new size divides."""
    if not is_explicit(leaf):
        return jnp.take(leaf, index, dim)
    sharding = jax.typeof(leaf).sharding
    spec = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
    names = spec[dim] if isinstance(spec[dim], tuple) else (spec[dim],) if spec[dim] else ()
    if len(index) % math.prod(sharding.mesh.shape[name] for name in names):
        spec[dim] = None
    out = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return leaf.at[(*[slice(None)] * dim, index)].get(out_sharding=out)


def on_host(leaf: Any) -> bool:
    """Whether an array is on one CPU device, where NumPy can slice it without compilation."""
    return (
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, Tracer)
        and jnp.issubdtype(leaf.dtype, jnp.number)
        and [d.platform for d in leaf.sharding.device_set] == ["cpu"]
    )
