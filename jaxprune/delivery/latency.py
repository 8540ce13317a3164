"""Latencies: the shortest of several runs, which take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

_ROUNDS = 4


def shortest_times(runs: Mapping[str, Callable[[], Any]], seconds: float = 0.2) -> dict[str, float]:
    """Shortest time of each run in seconds; each takes about `seconds` in all, and at least four runs.

    On a shared machine the shortest time is the one that is disturbed least.
    """
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()  # compiles
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            spent = 0.0
            while True:
                start = time.perf_counter()
                run()
                took = time.perf_counter() - start
                best[name], spent = min(best[name], took), spent + took
                if spent >= seconds / _ROUNDS:
                    break
    return best
