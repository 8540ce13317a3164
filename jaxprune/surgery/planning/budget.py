"""A budget of units, parameters or FLOPs: the exact amount that a plan must remove to meet it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np

from jaxprune.selection import as_written, count_to_prune
from jaxprune.surgery import cost
from jaxprune.surgery.groups import Group, Groups
from jaxprune.surgery.inference.kept import Keep

Removal = Mapping[Group, int]  # units that each group loses


@dataclass(frozen=True)
class Budget:
    """The quantity that is counted: entries of all parameters, FLOPs, or units of all groups."""

    groups: Groups
    kind: Literal["params", "flops", "units"]

    @cached_property
    def whole(self) -> int:
        return self._left(Keep())

    def removed(self, keep: Keep) -> int:
        """The amount of the budget that is removed."""
        return self.whole - self._left(keep)

    def _left(self, keep: Keep) -> int:
        if self.kind == "params":
            return cost.parameters(self.groups.model, keep)
        if self.kind == "flops":
            return cost.flops(self.groups.model.frame, keep)
        return sum(keep.size((group.atom,)) for group in self.groups)

    def target(
        self, sparsity: Any, scope: Literal["local", "global"], free: Sequence[Group], fixed: Removal
    ) -> tuple[int | Fraction, float | Fraction]:
        """The amount that a plan must remove; it is rounded to whole units if all units cost the same.

        A fraction that is written as 0.9 counts as 9/10.

        Args:
          sparsity: the fraction of the budget to remove.
          scope: "local" if each group loses the same fraction of its units, "global" if all units are ranked together.
          free: the groups that the budget is met with.
          fixed: number of units that each of the other groups loses.

        Returns:
          (the amount, the fraction of the free units whose removal meets it if all units cost the same).
        """
        before = self.removed(_first_units(fixed))
        if scope == "local" and self.kind == "units" and (free or before):
            level = float(sparsity)
            return before + sum(count(level, group.size) for group in free), level
        exact = as_written(sparsity) * self.whole
        price = self._price(free, fixed)
        if price is None:
            return exact, Fraction(0)
        n = sum(group.size for group in free)
        level = max((exact - before) / (price * n), Fraction(0))
        if price * n == self.whole:
            level = float(sparsity)
        units = sum(count(level, group.size) for group in free) if scope == "local" else count(level, n)
        return before + price * units, level

    def _price(self, free: Sequence[Group], fixed: Removal) -> int | None:
        """The cost of a unit of the free groups; None if the costs differ, or fall as fewer units are left."""
        before = self.removed(_first_units(fixed))

        def price(removal: Removal) -> int:
            return self.removed(_first_units({**fixed, **removal})) - before

        units = sum(group.size for group in free)
        found = price({free[0]: 1}) if free else 0
        if not found or any(price({group: 1}) != found for group in free[1:]):
            return None
        return found if price({group: group.size for group in free}) == found * units else None


def count(level: float | Fraction, n: int) -> int:
    """Number of units among n at a level, counted as for masks: `round(level * n)`, half to even."""
    return int(count_to_prune(level, n)) if isinstance(level, float) else round(level * n)


def first_level(levels: Sequence[Any], reaches: Callable[[Any], bool]) -> Any:
    """The first of the ascending levels for which `reaches` is true; it must be true for the last one."""
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(levels[middle]) else (middle + 1, high)
    return levels[low]


def _first_units(removal: Removal) -> Keep:
    """Removes the first units of each group: counts depend on the number of removed units, not on which they are."""
    return Keep({group.atom: np.arange(group.size) >= number for group, number in removal.items()})
