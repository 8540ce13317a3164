"""Latencies of runs that take turns: the shortest ones, and the ratio of two."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

_ROUNDS = 4
_MOST_ROUNDS = 40
_CHANGE = 0.01
_ERROR_OF_SPREAD = 1.4826 * 1.2533  # of a median, for the median distance from it; times 1 / sqrt(n)


def shortest_times(runs: Mapping[str, Callable[[], Any]], seconds: float = 0.2) -> dict[str, float]:
    """Shortest time of each run in seconds; each takes about `seconds` in all, and at least four runs.

    On a shared machine the shortest time is the one that is disturbed least. Runs that are shorter than a turn are
    timed together: the shortest single one of many is a matter of luck.
    """
    best = dict.fromkeys(runs, float("inf"))
    numbers = {name: _number(run, seconds) for name, run in runs.items()}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            best[name] = min(best[name], _time(run, numbers[name]) / numbers[name])
    return best


def relative_time(
    run: Callable[[], Any], reference: Callable[[], Any], seconds: float = 0.4
) -> tuple[float, float]:
    """(Time of a run over that of a reference, the shortest time of the reference in seconds).

    The two take turns, and the ratio is the median over the turns: what slows down the machine for a while slows
    down both. Turns are added until the ratio's standard error is below 1 %, or there were 40.

    Args:
      seconds: for which each of the two runs in four turns.
    """
    number = _number(run, seconds), _number(reference, seconds)
    ratios, shortest = [], float("inf")
    while len(ratios) < _MOST_ROUNDS:
        of_reference = _time(reference, number[1]) / number[1]
        ratios.append(_time(run, number[0]) / number[0] / of_reference)
        shortest = min(shortest, of_reference)
        middle = statistics.median(ratios)
        spread = statistics.median(abs(ratio - middle) for ratio in ratios)
        if len(ratios) > _ROUNDS and _ERROR_OF_SPREAD * spread <= _CHANGE * middle * len(ratios) ** 0.5:
            break
    return statistics.median(ratios), shortest


def _number(run: Callable[[], Any], seconds: float) -> int:
    """How many runs fill a turn; the first one compiles."""
    run()
    return max(int(seconds / _ROUNDS / max(_time(run, 1), 1e-7)), 1)


def _time(run: Callable[[], Any], number: int) -> float:
    """Seconds of so many runs."""
    start = time.perf_counter()
    for _ in range(number):
        run()
    return time.perf_counter() - start
