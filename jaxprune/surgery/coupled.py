"""Coupled units: slices of several parameters that are pruned together, as a structure for masks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

from jaxprune.allocation import check_minimum
from jaxprune.structures.structure import Shape
from jaxprune.surgery.coupled_units import CoupledUnits, coupled_units
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.unit_budget import UnitBudget
from jaxprune.surgery.unit_cost import unit_cost
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
