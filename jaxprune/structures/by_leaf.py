"""Units that each lie within one leaf."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.host import namespace
from jaxprune.structures.keep import Highest
from jaxprune.structures.structure import LeafStructure, Shape
from jaxprune.tree_nodes import Leaf


class Rule(Protocol):
    """How a structure chooses the units to keep: `Highest()`, or an N:M pattern. Frozen and hashable."""

    def counts_to_compare(self, counts: Any) -> Any: ...

    def select(
        self,
        units: list[jax.Array],
        counts: Any,
        pruned: list[jax.Array | None],
        unprotected: list[Any] | None = None,
    ) -> list[jax.Array]: ...


@dataclasses.dataclass(frozen=True)
class LeafUnits:
    """One array of units for each chosen leaf: the `Cut` of a `LeafStructure`.

    Args:
      structure: how a leaf is cut.
      names: paths of the leaves.
      leaf_shapes: their shapes.
      rule: which units are kept.
    """

    structure: LeafStructure
    names: tuple[str, ...] = dataclasses.field(compare=False)
    leaf_shapes: tuple[Shape, ...]
    rule: Rule

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple(self.structure.unit_shape(shape) for shape in self.leaf_shapes)

    @property
    def least(self) -> tuple[int, ...]:
        return ()

    @property
    def budget(self) -> None:
        return None

    def shares(self, shares: list[Any]) -> list[Any]:
        return shares

    def scores(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        return [self.structure.unit_scores(leaf) for leaf in leaves]

    def pruned(self, masks: Sequence[Any]) -> list[jax.Array | None]:
        return [self._pruned(mask, shape) for mask, shape in zip(masks, self.leaf_shapes, strict=True)]

    def masks(self, kept: Sequence[jax.Array]) -> list[jax.Array]:
        return [self.structure.expand(k, shape) for k, shape in zip(kept, self.leaf_shapes, strict=True)]

    def counts_to_compare(self, counts: Any) -> Any:
        return self.rule.counts_to_compare(counts)

    def select(
        self,
        units: list[jax.Array],
        counts: Any,
        pruned: list[jax.Array | None],
        unprotected: list[Any] | None = None,
    ) -> list[jax.Array]:
        return self.rule.select(units, counts, pruned, unprotected)

    def _pruned(self, mask: Any, shape: Shape) -> jax.Array | None:
        if mask is None:
            return None
        alive = namespace(mask).broadcast_to(mask, shape)
        if self.structure.unit_shape(shape) == shape:
            return ~alive
        return self.structure.unit_scores(alive.astype(np.float32)) <= 0


def cut_by_leaf(
    structure: LeafStructure, leaves: Sequence[Leaf], chosen: Sequence[int], rule: Rule | None = None
) -> LeafUnits:
    """The `cut` of a structure whose units each lie within one leaf.

    Raises:
      ValueError: if the structure cannot cut a leaf.
    """
    names = tuple(leaves[i].path for i in chosen)
    shapes = tuple(tuple(leaves[i].value.shape) for i in chosen)
    for path, shape in zip(names, shapes, strict=True):
        structure.check(path, shape)
    return LeafUnits(structure, names, shapes, rule or Highest())


def is_by_leaf(structure: Any) -> bool:
    """Whether the units of a structure lie within one leaf each."""
    return callable(getattr(structure, "unit_scores", None))


def check_by_leaf(structure: Any, what: str) -> None:
    """Raises TypeError for a structure whose units may lie across leaves, where `what` needs them within one."""
    if not is_by_leaf(structure):
        raise TypeError(
            f"`structure` must have its units within one leaf each, such as Channels(), got {structure!r}: {what}."
        )


def matrix_leaf(shape: Shape) -> Leaf:
    """A leaf of this shape, for the units of a matrix that is not a leaf of a tree."""
    return Leaf("matrix", (), jax.ShapeDtypeStruct(shape, jnp.float32), None)
