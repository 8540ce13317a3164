"""Single weights."""

from __future__ import annotations

import dataclasses

import jax

from jaxprune.structures.structure import Shape


@dataclasses.dataclass(frozen=True)
class Unstructured:
    """Every weight is a unit of its own; the mask has the parameter's shape.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.make_masks({"w": jnp.array([[3.0, 1.0], [2.0, 4.0]])}, 0.5, structure=jp.Unstructured())["w"]
      Array([[ True, False],
             [False,  True]], dtype=bool)
    """

    def check(self, path: str, shape: Shape) -> None:
        del path, shape

    def unit_shape(self, shape: Shape) -> Shape:
        return shape

    def unit_sizes(self, shape: Shape) -> int:
        del shape
        return 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        return scores

    def expand(self, units: jax.Array, shape: Shape) -> jax.Array:
        del shape
        return units
