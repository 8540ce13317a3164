"""Single weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxprune.structures.by_leaf import LeafUnits, cut_by_leaf, matrix_leaf
from jaxprune.structures.matrix import MatrixUnits
from jaxprune.structures.structure import Shape
from jaxprune.tree_nodes import Leaf


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

    @property
    def fixed_sparsity(self) -> None:
        return None

    def check_scope(self, scope: str) -> None:
        del scope

    def check_sparsity(self, share: Any, path: str) -> None:
        del share, path

    def default_leaves(self, leaves: Sequence[Leaf]) -> None:
        del leaves

    def cut(self, leaves: Sequence[Leaf], chosen: Sequence[int]) -> LeafUnits:
        return cut_by_leaf(self, leaves, chosen)

    def matrix_units(self) -> MatrixUnits:
        return MatrixUnits("Unstructured()", inputs=1, kept=None, are_weights=True)

    def cut_matrix(self, shape: Shape) -> LeafUnits:
        return self.cut([matrix_leaf(shape)], [0])

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
