"""Arguments that are counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def check_whole(at_least: int = 1, **numbers: Any) -> None:
    """Raises ValueError unless each of the named arguments is a whole number of at least `at_least`.

    Example:
      >>> from jaxprune.whole_numbers import check_whole
      >>> check_whole(steps=3)
      >>> check_whole(at_least=0, begin=-1)
      Traceback (most recent call last):
      ...
      ValueError: `begin` must be a whole number of at least 0, got -1.
    """
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < at_least:
            raise ValueError(f"`{name}` must be a whole number of at least {at_least}, got {number!r}.")


def check_rising(name: str, numbers: Iterable[Any], below: int) -> tuple[int, ...]:
    """Whole numbers from 0 on that rise, each below a bound, as a tuple; else raises ValueError.

    Example:
      >>> from jaxprune.whole_numbers import check_rising
      >>> check_rising("splits", [0, 5], below=10)
      (0, 5)
      >>> check_rising("splits", [5, 5], below=10)
      Traceback (most recent call last):
      ...
      ValueError: `splits` must rise and be below 10, got (5, 5).
    """
    found = tuple(numbers)
    if not found:
        raise ValueError(f"`{name}` must have at least one step, got none.")
    for number in found:
        check_whole(at_least=0, **{name: number})
    if list(found) != sorted({*found}) or found[-1] >= below:
        raise ValueError(f"`{name}` must rise and be below {below}, got {found}.")
    return tuple(map(int, found))
