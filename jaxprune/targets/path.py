"""A path from the dense model to the smallest one: which group loses units next."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from jaxprune.surgery.planning.budget import count
from jaxprune.targets.costs import Cost
from jaxprune.targets.units import Units

_CHUNKS = 256  # of a large group: more steps than that would not be seen in a latency
_LEVELS = 2048


def uniform_path(units: Units) -> np.ndarray:
    """The kept counts, in rows, when all groups lose the same share of their units."""
    free = sorted(group for groups in units.sets for group in groups)
    sizes = units.sizes
    levels = sorted({Fraction(i, n) for n in {sizes[g] for g in free} for i in range(n + 1)})
    if len(levels) > _LEVELS:
        levels = [Fraction(i, _LEVELS) for i in range(_LEVELS + 1)]
    kept = np.tile(np.array(sizes, np.int64), (max(len(levels), 1), 1))
    for group in free:
        kept[:, group] = [units.allowed(group, sizes[group] - count(x, sizes[group])) for x in levels]
    return np.unique(kept, axis=0)[::-1]


def cheapest_path(units: Units, cost: Cost, weights: Sequence[float] | None) -> np.ndarray:
    r"""The kept counts, in rows, when what does the least damage for what it saves goes first.

    The damage of removing units R of group g is \( w_g (\ln \sum_{u} s_u - \ln \sum_{u \notin R} s_u) \) over the
    scores of the units that it still has: the part of its importance that they hold. Without weights it is the sum
    of their scores.

    Args:
      units: the groups.
      cost: what is saved.
      weights: of each group; None for scores that are damages themselves.
    """
    kept = list(units.sizes)
    above = [
        np.append(np.cumsum(s[::-1])[::-1], 0.0) for s in units.scores
    ]  # of what is left without the first n
    rows = [tuple(kept)]

    def step(groups: tuple[int, ...]) -> dict[int, int] | None:
        """How many units each group of a set loses next."""
        group = groups[0]
        size, now = units.sizes[group], kept[group]
        chunk = max(units.steps[group], size // _CHUNKS)
        least = units.allowed(group, 0)
        new = max(least, (now - chunk) // units.steps[group] * units.steps[group])
        return dict.fromkeys(groups, now - new) if new < now else None

    def damage(removed: dict[int, int]) -> float:
        total = 0.0
        for group, number in removed.items():
            gone = units.sizes[group] - kept[group]
            before, after = above[group][gone], above[group][gone + number]
            if weights is None:
                total += max(before - after, 0.0)
            elif before > 0:
                total += weights[group] * float(np.log(before) - np.log(max(after, before * 1e-12)))
        return total

    def price(place: int) -> float | None:
        removed = step(units.sets[place])
        if removed is None:
            return None
        saved = cost.saved(kept, removed)
        return damage(removed) / saved if saved > 0 else None

    heap = [(found, place) for place in range(len(units.sets)) if (found := price(place)) is not None]
    heapq.heapify(heap)
    while heap:
        _, place = heapq.heappop(heap)
        found = price(place)  # what was removed since makes it no cheaper
        if found is None:
            continue
        if heap and found > heap[0][0]:
            heapq.heappush(heap, (found, place))
            continue
        for group, number in (step(units.sets[place]) or {}).items():
            kept[group] -= number
        rows.append(tuple(kept))
        if (found := price(place)) is not None:
            heapq.heappush(heap, (found, place))
    return np.array(rows, np.int64)


def first_below(costs: np.ndarray, goal: float) -> int:
    """The first row of a path whose cost is at most `goal`; the number of rows if none is."""
    below = np.flatnonzero(costs <= goal)
    return int(below[0]) if below.size else len(costs)
