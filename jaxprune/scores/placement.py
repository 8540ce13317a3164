"""Leaves of an explicit mesh: gathered where a layer must be seen as a whole, and put back."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.meshes import is_explicit


def whole(w: jax.Array) -> jax.Array:
    """The leaf on every device of its explicit mesh; elsewhere the compiler sees to that."""
    if not is_explicit(w):
        return w
    sharding: Any = jax.typeof(w).sharding
    return jax.sharding.reshard(w, NamedSharding(sharding.mesh, PartitionSpec(*[None] * w.ndim)))


def placed_like(scores: jax.Array, w: jax.Array) -> jax.Array:
    """Scores of the shape of `w`, cut as it is on an explicit mesh."""
    if not is_explicit(w):
        return scores
    sharding: Any = jax.typeof(w).sharding
    return jax.sharding.reshard(scores, NamedSharding(sharding.mesh, sharding.spec))
