"""The units to keep, if all units are ranked by their scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.host import namespace
from jaxprune.selection import select


@dataclasses.dataclass(frozen=True)
class Highest:
    """Keeps the units with the highest scores."""

    def counts_to_compare(self, counts: Any) -> Any:
        return counts

    def select(
        self,
        units: list[jax.Array],
        counts: Any,
        pruned: list[jax.Array | None],
        unprotected: list[Any] | None = None,
    ) -> list[jax.Array]:
        if unprotected is None:
            return select(units, counts, pruned=pruned)
        protected = select(units, unprotected, pruned=pruned)
        kept = select([above_all(u, p) for u, p in zip(units, protected, strict=True)], counts, pruned=pruned)
        return [k | p for k, p in zip(kept, protected, strict=True)]


def above_all(scores: jax.Array, keep: jax.Array) -> jax.Array:
    """Scores in which the units to keep rank above all others, even above inf."""
    return namespace(scores).where(keep, scores.dtype.type(jnp.inf), below_infinity(scores))


def below_infinity(scores: jax.Array) -> jax.Array:
    """Scores with the largest finite number in place of inf. (A minimum would flush denormals.)"""
    largest = jnp.finfo(scores.dtype).max.astype(scores.dtype)
    return namespace(scores).where(scores == jnp.inf, largest, scores)
