"""Arguments that are counts."""

from __future__ import annotations

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
