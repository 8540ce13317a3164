"""What a model costs, as a function of how many units each group keeps."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxprune.surgery.unit_cost import UnitCost


@dataclass(frozen=True)
class Cost:
    """A sum of terms: coefficient x product of the kept counts of some groups.

    Args:
      sizes: how many units each group has.
      terms: groups whose counts are multiplied -> coefficient. Whole coefficients give exact costs.
    """

    sizes: tuple[int, ...]
    terms: Mapping[tuple[int, ...], Any]

    @functools.cached_property
    def whole(self) -> Any:
        """The cost with nothing removed."""
        return self.of(self.sizes)

    def of(self, kept: Sequence[Any]) -> Any:
        """The cost for these counts, which may be arrays."""
        return sum(c * math.prod(kept[group] for group in groups) for groups, c in self.terms.items())

    def saved(self, kept: Sequence[int], removed: Mapping[int, int]) -> Any:
        """What is saved when some groups lose so many units more."""
        terms = {groups for group in removed for groups in self._with[group]}
        total = 0
        for groups in terms:
            before = math.prod(kept[group] for group in groups)
            after = math.prod(kept[group] - removed.get(group, 0) for group in groups)
            total += self.terms[groups] * (before - after)
        return total

    @functools.cached_property
    def _with(self) -> list[list[tuple[int, ...]]]:
        return [[groups for groups in self.terms if group in groups] for group in range(len(self.sizes))]


def weighted(sizes: Sequence[int], parts: Iterable[tuple[float, UnitCost]]) -> Cost:
    """The sum of some costs, each times a weight."""
    terms: dict[tuple[int, ...], float] = {}
    for weight, cost in parts:
        for groups, coefficient in zip(cost.factors, cost.coefficients, strict=True):
            terms[groups] = terms.get(groups, 0) + weight * coefficient
    return Cost(tuple(sizes), terms)
