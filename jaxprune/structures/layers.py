"""Whole layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from jaxprune.structures.by_leaf import LeafUnits, cut_by_leaf
from jaxprune.structures.mean import mean_over
from jaxprune.structures.structure import Shape
from jaxprune.tree_nodes import Leaf


@dataclasses.dataclass(frozen=True)
class Layers:
    """Every leaf is one unit. The mask is one bool of shape (1, ..., 1); sparsity is the fraction of layers.

    Layers are ranked against each other, so the scope is global. The score of a layer is the mean over the leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> scores = {"first": jnp.ones((2, 2)), "second": jnp.full((4, 4), 2.0)}
      >>> jp.make_masks(scores, 0.5, structure=jp.Layers())["first"]
      Array([[False]], dtype=bool)
    """

    @property
    def fixed_sparsity(self) -> None:
        return None

    def check_scope(self, scope: str) -> None:
        if scope == "local":
            raise ValueError("`scope` must be 'global' for Layers(): layers are ranked against each other.")

    def check_sparsity(self, share: Any, path: str) -> None:
        del share, path

    def default_leaves(self, leaves: Sequence[Leaf]) -> None:
        del leaves

    def cut(self, leaves: Sequence[Leaf], chosen: Sequence[int]) -> LeafUnits:
        return cut_by_leaf(self, leaves, chosen)

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
