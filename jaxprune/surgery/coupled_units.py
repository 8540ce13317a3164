"""The units of groups as one array of units for each group: how leaves are cut into them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.allocation import least_kept
from jaxprune.float_range import exponent_of, magnitude_bits, scaled, unscaled, widened
from jaxprune.host import namespace
from jaxprune.structures.keep import Highest
from jaxprune.structures.structure import Shape
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.layouts import Layout, by_unit, groups_in, layout_of, spread_units
from jaxprune.surgery.unit_budget import UnitBudget
from jaxprune.surgery.unit_sums import unit_sums


@dataclasses.dataclass(frozen=True)
class CoupledUnits:
    """One array of units for each group: the `Cut` of `Coupled`.

    Args:
      names: of the groups.
      sizes: how many units each has.
      layouts: for each leaf, and for each of its axes, where units lie along it; None where none do.
      least: units that each group keeps at least.
      round_to: what numbers of kept units are multiples of.
      budget: what a sparsity is a share of; None for the number of units.
    """

    names: tuple[str, ...] = dataclasses.field(compare=False)
    sizes: tuple[int, ...]
    layouts: tuple[tuple[Layout | None, ...], ...]
    least: tuple[int, ...]
    round_to: int = 1
    budget: UnitBudget | None = None

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return tuple((size,) for size in self.sizes)

    def shares(self, shares: list[Any]) -> list[Any]:
        first: dict[int, Any] = {}
        # Allocations leave out biases, so weights come first.
        order = sorted(zip(shares, self.layouts, strict=True), key=lambda pair: len(pair[1]) < 2)
        for share, of_leaf in order:
            for group in (group for layout in of_leaf if layout for group in groups_in(layout)):
                first.setdefault(group, share)
        return [first[group] for group in range(len(self.sizes))]

    def scores(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        return unit_sums(leaves, self.layouts, self.sizes)

    def pruned(self, masks: Sequence[Any]) -> list[jax.Array | None]:
        alive: list[Any] = [False] * len(self.sizes)  # None: all of them
        for mask, of_leaf in zip(masks, self.layouts, strict=True):
            for axis, layout in enumerate(of_leaf):
                if not layout:
                    continue
                if mask is None:
                    for group in groups_in(layout):
                        alive[group] = None
                    continue
                for group, slices in by_unit(layout, kept_along(mask, axis, layout)):
                    if alive[group] is not None:
                        alive[group] = slices.any(1) | alive[group]
        return [None if units is None or units is False else ~units for units in alive]

    def masks(self, kept: Sequence[jax.Array]) -> list[jax.Array]:
        return [self._mask(of_leaf, kept) for of_leaf in self.layouts]

    def norms(self, leaves: Sequence[jax.Array]) -> list[jax.Array]:
        """The L2 norm of each unit. The squares are of numbers near 1: all weights over one power of two."""
        wide = [
            widened(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.zeros(leaf.shape)
            for leaf in leaves
        ]
        tops = [jnp.max(magnitude_bits(w), initial=0) for w in wide]
        exponent = exponent_of(lax.bitcast_convert_type(jnp.max(jnp.stack(tops)), jnp.float32))
        totals = self.scores([jnp.square(scaled(w, exponent)) for w in wide])
        # The gradient of the norm is 0 where the norm is.
        return [
            unscaled(jnp.where(total == 0, 0, jnp.sqrt(jnp.where(total == 0, 1, total))), exponent)
            for total in totals
        ]

    def unit_sizes(self, shapes: Sequence[Shape]) -> list[int]:
        """For each group the number of weights in one of its units, in leaves of these shapes."""
        ones = [np.broadcast_to(np.float32(1), shape) for shape in shapes]
        return [int(sums[0]) for sums in unit_sums(ones, self.layouts, self.sizes)]

    def spread(self, values: Sequence[jax.Array]) -> list[jax.Array]:
        """For each leaf the product of the values of the units that a weight lies in; broadcasts to the leaf."""
        return [self._mask(of_leaf, values) for of_leaf in self.layouts]

    def counts_to_compare(self, counts: Any) -> Any:
        return counts

    def select(
        self,
        units: list[jax.Array],
        counts: Any,
        pruned: list[jax.Array | None],
        unprotected: list[Any] | None = None,
    ) -> list[jax.Array]:
        if self.budget is not None and not isinstance(counts, list):
            least = [] if unprotected is None else list(map(_without, self.sizes, unprotected))
            counts = self.budget.reached(units, counts, pruned, least)
        kept = Highest().select(units, counts, pruned, unprotected)
        if self.round_to == 1:
            return kept
        # The units of each group that are needed beside the kept ones are the best of the others.
        counts = [_to_prune(keep, self.round_to) for keep in kept]
        return Highest().select(units, counts, pruned)

    def _mask(self, of_leaf: Sequence[Layout | None], kept: Sequence[Any]) -> Any:
        mask = namespace(kept[0]).ones((1,) * len(of_leaf), kept[0].dtype)
        for axis, layout in enumerate(of_leaf):
            if layout:
                shape = [-1 if dim == axis else 1 for dim in range(len(of_leaf))]
                mask = mask * spread_units(layout, kept).reshape(shape)
        return mask


def coupled_units(
    groups: Groups,
    free: Sequence[int],
    paths: Iterable[str],
    minimum: int | float = 1,
    round_to: int = 1,
    budget: UnitBudget | None = None,
) -> CoupledUnits:
    """The units of some of the groups in the leaves at these paths."""
    found = [groups.groups[i] for i in free]
    numbers = {group.atom: number for number, group in enumerate(found)}
    layouts = []
    for path in paths:
        axes = groups.model.axes.get(path, ())
        of_leaf = [layout_of(axis, numbers) for axis in axes]
        layouts.append(tuple(layout if any(True for _ in groups_in(layout)) else None for layout in of_leaf))
    sizes = tuple(group.size for group in found)
    return CoupledUnits(
        tuple(group.name for group in found),
        sizes,
        tuple(layouts),
        tuple(map(max, least_kept(minimum, list(sizes)), (group.minimum for group in found))),
        round_to,
        budget,
    )


def kept_along(mask: Any, axis: int, layout: Layout) -> Any:
    """Whether any weight is kept at each entry of an axis of this layout, as a column."""
    module, length = namespace(mask), math.prod(factor.size for factor in layout)
    if mask.ndim == 0:
        return module.broadcast_to(mask, (length, 1))
    others = tuple(dim for dim in range(mask.ndim) if dim != axis)
    return module.broadcast_to(mask.any(others), (length,))[:, None]


def _without(size: int, unprotected: Any) -> Any:
    """How many units of a group are protected."""
    return size - (unprotected if isinstance(unprotected, int) else unprotected.low.astype(jnp.int32))


def _to_prune(kept: Any, multiple: int) -> Any:
    """How many units are pruned when the number of kept ones is rounded up."""
    number = kept.sum() if isinstance(kept, np.ndarray) else jnp.sum(kept, dtype=jnp.int32)
    left = -(-number // multiple) * multiple
    if isinstance(kept, np.ndarray):
        return int(kept.size - min(left, kept.size))
    return kept.size - jnp.minimum(left, kept.size)
