"""Leaves of an explicit mesh: gathered where a layer must be seen as a whole, and put back."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def whole(w: jax.Array) -> jax.Array:
    """The leaf on every device of its explicit mesh; elsewhere the compiler sees to that."""
    sharding: Any = jax.typeof(w).sharding
    if AxisType.Explicit not in getattr(sharding.mesh, "axis_types", ()):
        return w
    return jax.sharding.reshard(w, NamedSharding(sharding.mesh, PartitionSpec(*[None] * w.ndim)))


def placed_like(scores: jax.Array, w: jax.Array) -> jax.Array:
    """Scores of the shape of `w`, cut as it is on an explicit mesh."""
    sharding: Any = jax.typeof(w).sharding
    if AxisType.Explicit not in getattr(sharding.mesh, "axis_types", ()):
        return scores
    return jax.sharding.reshard(scores, NamedSharding(sharding.mesh, sharding.spec))
