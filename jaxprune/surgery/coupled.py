"""Coupled units: slices of several parameters that are pruned together, as a structure for masks."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.allocation import check_minimum, least_kept
from jaxprune.float_range import exponent_of, magnitude_bits, scaled, unscaled, widened
from jaxprune.host import namespace
from jaxprune.structures.keep import Highest
from jaxprune.structures.structure import Shape
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.layouts import Layout, by_unit, groups_in, layout_of, spread_units
from jaxprune.surgery.unit_budget import UnitBudget
from jaxprune.surgery.unit_cost import unit_cost
from jaxprune.surgery.unit_sums import unit_sums
from jaxprune.tree_nodes import Leaf
from jaxprune.weight_names import is_statistic


@dataclasses.dataclass(frozen=True, repr=False)
class Coupled:
    r"""A unit is slice i of every member of a group of `find_groups`, over as many parameters as there are.

    Its score is the sum of the scores of all its weights: \( s_i = \sum_{w \in \text{unit } i} s_w \). A weight
    that lies in units of two groups (an input channel and an output channel) counts in both; it is pruned
    where one of them is. The mask of a leaf is the product of a bool vector for each axis that holds units:
    (1, ..., C, ..., 1) where one axis does.

    Without `where`, every leaf that a group touches is pruned: biases, statistics and embeddings as well. A
    `where` that leaves out a leaf keeps all groups that touch it. A tree may lack statistics (Linen's
    `params` without `batch_stats`): they then count nothing.

    With `budget="params"` or `"flops"` a sparsity is a share of the parameters or FLOPs of the whole model, as
    `jp.plan_removal` counts them: the fewest units are pruned that remove at least that much.

    With `scope="local"` each group loses the same share of its units. In a tree of shares (an allocation) a
    group takes that of its first leaf with more than one axis; an allocation may also name the groups.

    `jp.plan_from_masks(groups, masks)` gives the plan that removes what is pruned, `jp.masked_fn(fn, groups)` the
    function that trains as if it was removed.

    Args:
      groups: what `jp.find_groups` found.
      minimum: units that each group keeps at least: a whole number, or a share in (0, 1). A group of experts of
        which a router chooses k also keeps k.
      exclude: names of groups, or regular expressions that match a whole path of one of their members (or a
        leading part of it, up to a slash): these groups lose nothing.
      round_to: the number of kept units of a group is rounded up to a multiple of this (or to all of them).
      budget: what a sparsity is a share of: "units" (those of the groups that may lose some), or "params" or "flops"
        of the whole model.

    Raises:
      ValueError: there is no group to prune; a pattern that matches no group; an unknown budget, or one that is
        shared out by an allocation, or (when masks are made) that can't be reached; a tree that is not the one that
        the groups were found in.
      TypeError: `groups` is not what `find_groups` gives.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[3.0, 1.0, 2.0]]), "down": jnp.array([[1.0], [1.0], [9.0]])}
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> groups = jp.find_groups(mlp, params, jnp.ones((1, 1)))
      >>> masks = jp.make_masks(jp.scores.magnitude(params), 0.3, structure=jp.Coupled(groups))
      >>> masks["up"], masks["down"].ravel()
      (Array([[ True, False,  True]], dtype=bool), Array([ True, False,  True], dtype=bool))
      >>> jp.plan_from_masks(groups, masks).shrink(params)["up"]
      Array([[3., 2.]], dtype=float32)

    References:
      Fang et al., DepGraph: Towards Any Structural Pruning, 2023, arXiv:2301.12900.
    """

    groups: Groups
    minimum: int | float = 1
    exclude: str | tuple[str, ...] = ()
    round_to: int = 1
    budget: Literal["units", "params", "flops"] = "units"

    def __post_init__(self):
        if not isinstance(self.groups, Groups):
            raise TypeError(
                f"`groups` must be what jp.find_groups(fn, params, *inputs) gives, got {self.groups!r}."
            )
        check_minimum(self.minimum)
        if self.minimum < 1 and isinstance(self.minimum, int):
            raise ValueError(
                f"`minimum` must be at least 1: a group can't lose all its units, got {self.minimum!r}."
            )
        if not isinstance(self.round_to, int) or self.round_to < 1:
            raise ValueError(f"`round_to` must be a positive whole number, got {self.round_to!r}.")
        if self.budget not in ("units", "params", "flops"):
            raise ValueError(f"`budget` must be one of 'units', 'params', 'flops', got {self.budget!r}.")
        if not isinstance(self.exclude, str):
            object.__setattr__(self, "exclude", tuple(self.exclude))
        if not self._free:
            why = (
                f" The first axes are frozen because: {self.groups.frozen[0].reason}."
                if not self.groups
                else ""
            )
            raise ValueError(
                f"`groups` has no group to prune ({len(self.groups)} in all, less `exclude`).{why}"
            )

    def __repr__(self) -> str:
        more = [
            f", {name}={value!r}"
            for name, value, default in (
                ("minimum", self.minimum, 1),
                ("exclude", self.exclude, ()),
                ("round_to", self.round_to, 1),
                ("budget", self.budget, "units"),
            )
            if value != default
        ]
        units = sum(group.size for group in self.groups)
        return f"Coupled({len(self.groups)} groups of {units} units{''.join(more)})"

    @property
    def fixed_sparsity(self) -> None:
        return None

    def check_scope(self, scope: str) -> None:
        del scope

    def check_sparsity(self, share: Any, path: str) -> None:
        del share, path

    def default_leaves(self, leaves: Sequence[Leaf]) -> list[int]:
        self._check(leaves)
        return [i for i, leaf in enumerate(leaves) if leaf.path in self._members]

    def cut(self, leaves: Sequence[Leaf], chosen: Sequence[int]) -> CoupledUnits:
        self._check(leaves)
        paths = {leaves[i].path for i in chosen}
        left_out = [leaf.path for leaf in leaves if leaf.path in self._members and leaf.path not in paths]
        kept = {group: path for path in left_out for group in self._members[path]}
        free = [i for i in self._free if i not in kept]
        if not free:
            path = next(iter(kept.values()))
            raise ValueError(
                f"no group is left to prune: `where` leaves out {path!r}, and a group loses units of all its "
                "leaves or of none. Pass where=None, and `exclude` to Coupled for the groups to keep."
            )
        paths = [leaves[i].path for i in chosen]
        return coupled_units(self.groups, free, paths, self.minimum, self.round_to, self._budget(tuple(free)))

    def _budget(self, free: tuple[int, ...]) -> UnitBudget | None:
        """The budget where these groups may lose units; remembered, as a cut is made for every set of masks."""
        if self.budget == "units":
            return None
        if free not in self._budgets:
            numbers = {self.groups.groups[i].atom: number for number, i in enumerate(free)}
            cost = unit_cost(self.groups, numbers, self.budget)
            self._budgets[free] = UnitBudget(self.budget, cost, self.round_to)
        return self._budgets[free]

    @functools.cached_property
    def _budgets(self) -> dict[tuple[int, ...], UnitBudget]:
        return {}

    @functools.cached_property
    def _free(self) -> list[int]:
        """The groups that may lose units."""
        excluded = set(self.groups.named(self.exclude, "exclude"))
        return [i for i, group in enumerate(self.groups) if group.name not in excluded]

    @functools.cached_property
    def _members(self) -> dict[str, list[int]]:
        """For each path that groups touch, which of those that may lose units do."""
        members: dict[str, list[int]] = {}
        for i in self._free:
            for member in self.groups.groups[i].members:
                members.setdefault(member.path, []).append(i)
        return members

    def _check(self, leaves: Sequence[Leaf]) -> None:
        """Raises ValueError for a tree that is not the one that the groups were found in."""
        shapes = {leaf.path: tuple(getattr(leaf.value, "shape", ())) for leaf in leaves}
        for path in self._members:
            check_member(self.groups, path, shapes.get(path))


def check_member(groups: Groups, path: str, shape: Shape | None, argument: str = "params") -> None:
    """Raises ValueError where a tree lacks a leaf that groups touch (None), or has it in another shape."""
    known = {
        name: tuple(aval.shape)
        for name, aval in zip(groups.model.traced.paths, groups.model.traced.avals, strict=True)
    }
    if shape is None and not is_statistic(path):
        raise ValueError(
            f"`{argument}` is not what the groups were found in: it lacks {path!r}. Call jp.find_groups with "
            "this function and these parameters."
        )
    if shape is not None and shape != known[path]:
        raise ValueError(
            f"`{argument}` must have the shapes that the groups were found with: {known[path]} at {path!r}, "
            f"got {shape}. Call jp.find_groups with these parameters."
        )


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
