"""Whole layers."""

from __future__ import annotations

import dataclasses
import math

import jax

from jaxprune.structures.structure import Shape, mean_over


@dataclasses.dataclass(frozen=True)
class Layers:
    """Every leaf is one unit; the mask is one bool of shape (1, ..., 1). Sparsity is the share of layers.

    Layers are compared with each other, so the scope is global. The score is the mean over the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> scores = {"first": jnp.ones((2, 2)), "second": jnp.full((4, 4), 2.0)}
      >>> jp.make_masks(scores, 0.5, structure=jp.Layers())["first"]
      Array([[False]], dtype=bool)
    """

    def check(self, path: str, shape: Shape) -> None:
        del path, shape

    def unit_shape(self, shape: Shape) -> Shape:
        return tuple(min(n, 1) for n in shape)

    def unit_sizes(self, shape: Shape) -> int:
        return math.prod(shape)

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        return mean_over(scores, tuple(range(scores.ndim)))

    def expand(self, units: jax.Array, shape: Shape) -> jax.Array:
        del shape
        return units
