"""Latencies: the shortest of several runs, which take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

_ROUNDS = 4
_MOST_ROUNDS = 40
_STEADY = 3
_CHANGE = 0.01


def shortest_times(runs: Mapping[str, Callable[[], Any]], seconds: float = 0.2) -> dict[str, float]:
    """Shortest time of each run in seconds; each takes about `seconds` in four turns, and more if they differ.

    On a shared machine the shortest time is the one that is disturbed least: turns are added until three of them
    made no time shorter by more than 1 %, or there were 40. Runs that are shorter than a turn are timed together:
    the shortest single one of many is a matter of luck.
    """
    best = dict.fromkeys(runs, float("inf"))
    numbers = {}
    for name, run in runs.items():
        run()  # compiles
        numbers[name] = max(int(seconds / _ROUNDS / max(_time(run, 1), 1e-7)), 1)
    steady = 0
    for turn in range(_MOST_ROUNDS):
        before = dict(best)
        for name, run in runs.items():
            best[name] = min(best[name], _time(run, numbers[name]) / numbers[name])
        is_steady = all(best[name] >= (1 - _CHANGE) * before[name] for name in runs)
        steady = steady + 1 if is_steady else 0
        if turn + 1 >= _ROUNDS and steady >= _STEADY:
            break
    return best


def _time(run: Callable[[], Any], number: int) -> float:
    """Seconds of so many runs."""
    start = time.perf_counter()
    for _ in range(number):
        run()
    return time.perf_counter() - start
