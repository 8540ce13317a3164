"""What every structure provides: how a tree is cut into units, and which of them are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax

from jaxprune.tree_nodes import Leaf

Shape = tuple[int, ...]


class Structure(Protocol):
    """A rule that groups weights into units, each kept or pruned as one.

    A structure is a frozen dataclass: static, hashable, and without arrays. If each unit lies within one leaf,
    it is a `LeafStructure`, whose `cut` is `cut_by_leaf(self, leaves, chosen)`.
    """

    @property
    def fixed_sparsity(self) -> float | None:
        """The sparsity of every leaf that the structure itself fixes, as N:M does; None if it fixes none."""
        ...

    def check_scope(self, scope: str) -> None:
        """Raises ValueError for a scope that has no meaning for these units."""
        ...

    def check_sparsity(self, share: Any, path: str) -> None:
        """Raises ValueError, naming `path`, for a known sparsity that masks of this structure cannot have."""
        ...

    def default_leaves(self, leaves: Sequence[Leaf]) -> list[int] | None:
        """Positions of the leaves to prune if `where` is None; None for those of `prunable`."""
        ...

    def cut(self, leaves: Sequence[Leaf], chosen: Sequence[int]) -> Cut:
        """The units of the chosen leaves of a tree.

        Args:
          leaves: `leaves_of` the tree: paths and values, of which only the shapes count.
          chosen: positions of the leaves to prune.

        Raises:
          ValueError: if a leaf cannot be cut into units (the error names the leaf).
        """
        ...


class Budget(Protocol):
    """What a sparsity is a share of, where that is not the number of units."""

    def counts(self, shares: Any, scope: Any, least: Sequence[int]) -> Any:
        """What `Cut.select` takes as counts, for a share that may be traced; `least` is that of each array."""
        ...

    def check(self, shares: Any, scope: Any, least: Sequence[int]) -> None:
        """Raises ValueError for a known share that can't be reached."""
        ...


class Cut(Protocol):
    """The units of a tree, as one or more arrays of units.

    A cut is frozen and hashable and holds no arrays, because it is a static argument of compiled programs. Equal
    cuts share programs, so names are left out of the comparison. Lists of leaves and masks have one entry for
    each chosen leaf; lists of units have one entry for each array of units.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each array of units, for error messages: the path of a leaf, or the name of a group."""
        ...

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of each array of units."""
        ...

    @property
    def least(self) -> Sequence[int]:
        """Units that each array keeps at least, whatever the criterion's minimum is; empty for none."""
        ...

    @property
    def budget(self) -> Budget | None:
        """What a sparsity is a share of; None for the number of units."""
        ...

    def shares(self, shares: list[Any]) -> list[Any]:
        """The share of each array of units, from the shares of the leaves (an allocation)."""
        ...

    def scores(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """The score of each unit, from the scores of its weights."""
        ...

    def pruned(self, masks: Sequence[Any]) -> list[jax.Array | None]:
        """Which units have no weight left under these masks. None, for a mask or for units, means all are kept."""
        ...

    def masks(self, kept: Sequence[jax.Array]) -> list[jax.Array]:
        """Mask leaves that broadcast to the parameters, from one decision per unit (True = keep)."""
        ...

    def counts_to_compare(self, counts: Any) -> Any:
        """The counts to call `select` with, given the counts to prune; None if `select` needs none."""
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
          units: the scores of the units.
          counts: number of units to prune: one count for all units, or a list with one for each array; or what
            `budget.counts` gives.
          pruned: units that are pruned before all others.
          unprotected: for each array, the number of units beyond the minimum that it keeps; None if there is no
            minimum.
        """
        ...


class LeafStructure(Structure, Protocol):
    """A structure whose units each lie within one leaf.

    The units of a leaf form an array of `unit_shape(shape)`. `unit_scores` reduces a score leaf to that array,
    and `expand` turns one decision per unit into a mask leaf. Every unit counts the same.
    """

    def check(self, path: str, shape: Shape) -> None:
        """Raises ValueError, naming `path`, if a leaf of this shape cannot be cut into units."""
        ...

    def unit_shape(self, shape: Shape) -> Shape:
        """Shape of the array of units of a leaf."""
        ...

    def unit_sizes(self, shape: Shape) -> jax.typing.ArrayLike:
        """Number of weights in each unit; broadcasts to `unit_shape(shape)`."""
        ...

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """Mean score of the weights of each unit, float32 (`Unstructured` keeps the scores as they are).

        A unit that holds an inf has the score inf and is kept. A unit that holds a NaN has the score NaN.
        """
        ...

    def expand(self, units: jax.Array, shape: Shape) -> jax.Array:
        """The value of each unit at all of its weights: an array that broadcasts to `shape`."""
        ...
