"""Meshes: explicit axes, on which sharding is part of an array's type, and manual ones, those of `shard_map`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def is_explicit(array: Any) -> bool:
    """Whether an axis of the array's mesh is explicit: computations with it must then be given their sharding.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.meshes import is_explicit
      >>> is_explicit(jnp.ones(3))
      False
    """
    sharding: Any = jax.typeof(array).sharding
    return AxisType.Explicit in getattr(sharding.mesh, "axis_types", ())


def placed_like(x: jax.Array, w: jax.Array) -> jax.Array:
    """An array that broadcasts to a parameter, on the devices and with the sharding of the parameter.

    An explicit mesh requires this: a `where` of operands with different shardings is an error there. On an
    automatic mesh only known arrays are moved; under `jit` the compiler places arrays.
    """
    if x.ndim == 0:
        return x
    sharding: Any = jax.typeof(w).sharding
    known = None if isinstance(w, jax.core.Tracer) else getattr(w, "sharding", None)  # NumPy has none
    if isinstance(known, NamedSharding):
        sharding = known
    elif not is_explicit(w):
        return x
    spec = tuple(sharding.spec) + (None,) * (w.ndim - len(sharding.spec))
    spec = [axis if n == m else None for axis, n, m in zip(spec, w.shape, x.shape, strict=True)]
    sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.sharding.reshard(x, sharding) if is_explicit(w) else jax.device_put(x, sharding)


def gathered(w: jax.Array) -> jax.Array:
    """The array replicated on every device of its explicit mesh; on other meshes the compiler does that."""
    if not is_explicit(w):
        return w
    sharding: Any = jax.typeof(w).sharding
    return jax.sharding.reshard(w, NamedSharding(sharding.mesh, PartitionSpec(*[None] * w.ndim)))


def varying_axes(tree: Any) -> frozenset[str]:
    """Axes of a manual mesh (inside `shard_map`) over which any array of a tree differs between the devices."""
    types = [
        leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf) for leaf in jax.tree.leaves(tree)
    ]
    manual = [getattr(kind, "manual_axis_type", None) for kind in types]
    return frozenset().union(*(kind.varying for kind in manual if kind is not None))


def vary_over(tree: Any, axes: frozenset[str]) -> Any:
    """The tree with all arrays typed as varying over the axes: the carry of a loop must not change its type."""

    def cast(x: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree


def steady(change: Callable[[Any], Any], start: Any) -> Any:
    """The carry `start` with the types that it has after `change`, for a loop inside `shard_map`."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return start
    # Once is enough, unless a part takes its axes from another part of the carry.
    while (wanted := _types(jax.eval_shape(change, start))) != _types(start):
        leaves, treedef = jax.tree.flatten(start)
        before = _types(start)
        start = treedef.unflatten(
            [vary_over(x, new | old) for x, new, old in zip(leaves, wanted, before, strict=True)]
        )
        if _types(start) == before:
            break
    return start


def _types(tree: Any) -> list[frozenset[str]]:
    return [varying_axes(leaf) for leaf in jax.tree.leaves(tree)]
