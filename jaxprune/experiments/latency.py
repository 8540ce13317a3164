"""Latency of a small function as a share of the large one's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_LONG, _TURNS = 0.02, 9


def relative_latency(small: Callable[[], Any], large: Callable[[], Any]) -> float:
    """The ratio of the times of two calls, each the least of several measured in turns.

    The functions are called once before, so that compilation is not measured.
    """
    calls = [_calls(fn) for fn in (small, large)]
    times: list[list[float]] = [[], []]
    for _ in range(_TURNS):
        for fn, number, of in zip((small, large), calls, times, strict=True):
            of.append(_time(fn, number) / number)
    return float(np.min(times[0]) / np.min(times[1]))


def _calls(fn: Callable[[], Any]) -> int:
    """How many calls take long enough to be timed."""
    jax.block_until_ready(fn())
    once = _time(fn, 1)
    return max(int(_LONG / max(once, 1e-7)), 1)


def _time(fn: Callable[[], Any], number: int) -> float:
    begun = time.perf_counter()
    for _ in range(number):
        jax.block_until_ready(fn())
    return time.perf_counter() - begun
