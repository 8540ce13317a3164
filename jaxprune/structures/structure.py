"""What every structure offers: how a tree is cut into units, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax

from jaxprune.tree_nodes import Leaf

Shape = tuple[int, ...]


class Structure(Protocol):
    """A rule that groups weights into units, each kept or pruned as one.

    A structure is a frozen dataclass: static, hashable, and it holds no arrays. One whose units lie within one
    leaf each is a `LeafStructure`, whose `cut` is `cut_by_leaf(self, leaves, chosen)`.
    """

    @property
    def fixed_sparsity(self) -> float | None:
        """The sparsity that the structure itself fixes, of every leaf alike, as N:M does; None if it fixes none."""
        ...

    def check_scope(self, scope: str) -> None:
        """Raises ValueError for a scope that has no meaning for these units."""
        ...

    def check_sparsity(self, share: Any, path: str) -> None:
        """Raises ValueError, naming `path`, for a known share that masks of this structure cannot have."""
        ...

    def default_leaves(self, leaves: Sequence[Leaf]) -> list[int] | None:
        """Positions of the leaves to prune where `where` is None; None for those of `prunable`."""
        ...

    def cut(self, leaves: Sequence[Leaf], chosen: Sequence[int]) -> Cut:
        """The units of the chosen leaves of a tree.

        Args:
          leaves: `leaves_of` the tree: paths and values, of which only the shapes count.
          chosen: positions of the leaves to prune.

        Raises:
          ValueError: a leaf that cannot be cut into units (it is named).
        """
        ...


class Cut(Protocol):
    """The units of a tree, as one or more arrays of units.

    It is frozen and hashable and holds no arrays: it is a static argument of compiled programs, which are shared
    between cuts that are equal; so names are left out of the comparison. Leaves and masks go in and come out as
    lists with an entry for each chosen leaf; units, with an entry for each array of units.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """For error messages, the name of each array of units: a leaf's path, or a group's name."""
        ...

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of each array of units."""
        ...

    @property
    def least(self) -> Sequence[int]:
        """Units that each array keeps at least, whatever the criterion's minimum is; empty for none."""
        ...

    def shares(self, shares: list[Any]) -> list[Any]:
        """The share of each array of units, from the shares of the leaves (an allocation)."""
        ...

    def scores(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """The score of each unit, from the scores of its weights."""
        ...

    def pruned(self, masks: Sequence[Any]) -> list[jax.Array | None]:
        """Which units have no weight left under these masks; None in place of a mask or of units: all are kept."""
        ...

    def masks(self, kept: Sequence[jax.Array]) -> list[jax.Array]:
        """Mask leaves that broadcast to the parameters, from one decision a unit (True = keep)."""
        ...

    def counts_to_compare(self, counts: Any) -> Any:
        """The counts that `select` is to be called with, where these are known; None if it needs none."""
        ...

    def select(
        self,
        units: list[jax.Array],
        counts: Any,
        pruned: list[jax.Array | None],
        unprotected: list[Any] | None = None,
    ) -> list[jax.Array]:
        """Which units are kept.

        Args:
          units: their scores.
          counts: how many are pruned, one count over all units or a list with one for each array.
          pruned: units that are pruned before all others.
          unprotected: for each array, how many units lie outside of the minimum that it keeps; None without one.
        """
        ...


class LeafStructure(Structure, Protocol):
    """A structure whose units lie within one leaf each.

    The units of a leaf form an array of `unit_shape(shape)`; `unit_scores` reduces a score leaf to it and
    `expand` turns one decision a unit into a mask leaf. Every unit has the same weight in a count.
    """

    def check(self, path: str, shape: Shape) -> None:
        """Raises ValueError, naming `path`, when a leaf of this shape cannot be cut into units."""
        ...

    def unit_shape(self, shape: Shape) -> Shape:
        """Shape of the array of units of a leaf."""
        ...

    def unit_sizes(self, shape: Shape) -> jax.typing.ArrayLike:
        """Weights in each unit; broadcasts to `unit_shape(shape)`."""
        ...

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """Mean score of each unit's weights, float32 (`Unstructured` keeps the scores as they are).

        A unit that holds an inf has inf: it is kept; one that holds a NaN has NaN.
        """
        ...

    def expand(self, units: jax.Array, shape: Shape) -> jax.Array:
        """Value of each unit spread over its weights: an array that broadcasts to `shape`."""
        ...
