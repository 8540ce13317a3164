"""The groups that may lose units: what is kept at least, which are alike, and which unit goes first."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxprune.params import PyTree
from jaxprune.surgery import Plan
from jaxprune.surgery.groups import Group, Groups
from jaxprune.surgery.inference.axes import Atom
from jaxprune.surgery.planning.alike import Alike, alike_sets
from jaxprune.surgery.planning.removal import excluded, plan_units
from jaxprune.surgery.scores import UnitScores, l2_scores, unit_scores
from jaxprune.surgery.unit_cost import UnitCost, part_costs, unit_cost

ROUNDED = 32  # a group of so many units keeps a multiple of 8, so that vectors are full
_WIDTH = 8


@dataclass(frozen=True)
class Units:
    """The groups of a model, by number.

    Attributes:
      groups: the groups.
      sets: the groups that may lose units; those of a set lose the same number each.
      least: units that each group keeps.
      steps: what the numbers of kept units are multiples of.
      scores: of each group, ascending; empty for one that may not lose units.
      order: of each group, its units from the lowest score on.
    """

    groups: Groups
    sets: tuple[tuple[int, ...], ...]
    least: tuple[int, ...]
    steps: tuple[int, ...]
    scores: tuple[np.ndarray, ...]
    order: tuple[np.ndarray, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of units of each group."""
        return tuple(group.size for group in self.groups)

    @property
    def numbers(self) -> dict[Atom, int]:
        """Each group's number."""
        return {group.atom: i for i, group in enumerate(self.groups)}

    @functools.cached_property
    def parts(self) -> Mapping[Hashable, UnitCost]:
        """What the parts of the model cost."""
        return part_costs(self.groups, self.numbers)

    def halved(self, groups: Iterable[int]) -> tuple[int, ...]:
        """The kept counts when some groups keep half of their units."""
        row = list(self.sizes)
        for group in groups:
            row[group] = self.allowed(group, row[group] // 2)
        return tuple(row)

    def allowed(self, group: int, kept: int) -> int:
        """The smallest number of units, and at least `kept`, that a group may keep."""
        size, step = self.groups.groups[group].size, self.steps[group]
        return min(size, -(-max(kept, self.least[group]) // step) * step)

    def plan(self, kept: Sequence[int]) -> Plan:
        """The plan by which each group keeps so many units."""
        masks = {}
        for group, order, number in zip(self.groups, self.order, kept, strict=True):
            if number < group.size:
                masks[group.name] = np.ones(group.size, bool)
                masks[group.name][order[: group.size - number]] = False
        return plan_units(self.groups, masks)

    def kinds(self) -> list[tuple[int, ...]]:
        """The groups that may lose units, by kind: as many units each, of the same parameters and FLOPs."""
        costs = [unit_cost(self.groups, self.numbers, kind) for kind in ("params", "flops")]
        found: dict[Any, list[int]] = {}
        for group in sorted(group for names in self.sets for group in names):
            kept = self.halved([group])
            key = self.sizes[group], kept[group], *(cost.whole - cost.known(kept) for cost in costs)
            found.setdefault(key, []).append(group)
        return [tuple(groups) for groups in found.values()]


@dataclass(frozen=True)
class Choice:
    """Which groups may lose units, and how many, as the arguments of `plan_to` say, for any part of the layers.

    Attributes:
      groups: the groups of the full model.
      free, sets, minimum, steps: of each group by name.
    """

    groups: Groups
    free: frozenset[str]
    sets: Mapping[str, tuple[str, ...]]
    minimum: int
    steps: Mapping[str, int]

    @staticmethod
    def of(
        groups: Groups,
        exclude: str | Iterable[str],
        only: str | Iterable[str] | None,
        alike: Alike,
        minimum: int,
        round_to: int | None,
    ) -> Choice:
        """What the arguments say of all groups; where `round_to` is None, large ones keep multiples of 8."""
        fixed = dict.fromkeys(excluded(groups, exclude, only), 0.0)
        sets = alike_sets(groups, alike, fixed)
        steps = {group.name: round_to or (_WIDTH if group.size >= ROUNDED else 1) for group in groups}
        return Choice(groups, frozenset(set(groups.keys()) - set(fixed)), sets, minimum, steps)

    def units(self, groups: Groups, params: PyTree, score: Any) -> Units:
        """The units of these groups, which are those of the full model or what is left without some layers.

        Raises:
          ValueError: if a group that may lose units has no score.
        """
        full = self.names(groups)
        if isinstance(score, UnitScores):
            score = UnitScores(
                {group.name: score[name] for group, name in zip(groups, full, strict=True) if name in score}
            )
        scores = unit_scores(groups, params, l2_scores(groups, params) if score is None else score)
        free = [name in self.free for name in full]
        for group, is_free in zip(groups, free, strict=True):
            if is_free and group.name not in scores:
                raise ValueError(
                    f"`score` has no scores for group {group.name!r}: pass it in `exclude`, or give scores for it."
                )
        together: dict[Any, list[int]] = {}
        for i, name in enumerate(full):
            if free[i]:
                together.setdefault(self.sets[name], []).append(i)
        least = [max(group.minimum, min(self.minimum, group.size)) for group in groups]
        for of_set in together.values():
            for i in of_set:
                least[i] = max(least[j] for j in of_set)
        found = [
            np.asarray(scores[group.name], np.float64) if is_free else np.zeros(0)
            for group, is_free in zip(groups, free, strict=True)
        ]
        order = tuple(np.argsort(s, kind="stable") for s in found)
        return Units(
            groups,
            tuple(tuple(of_set) for of_set in together.values()),
            tuple(least),
            tuple(self.steps.get(name, 1) for name in full),
            tuple(s[o] for s, o in zip(found, order, strict=True)),
            order,
        )

    def names(self, groups: Groups) -> list[str]:
        """Of each group the one of the full model with which it shares a place, or ""."""
        return [self._full(group) for group in groups]

    def _full(self, group: Group) -> str:
        if group.name in self.groups and self.groups[group.name].members == group.members:
            return group.name
        for member in group.members:
            for one in self.groups.of(member.path, member.axis):
                if one.size == group.size:
                    return one.name
        return ""
