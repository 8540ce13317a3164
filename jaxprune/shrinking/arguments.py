"""How much is removed in each round, and how many steps it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.allocation import check_fraction, pruned_after
from jaxprune.whole_numbers import check_whole


def check_functions(**functions: Any) -> None:
    """Raises TypeError for an argument that can't be called."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"`{name}` must be a function, got {function!r}.")


def sparsities_of(rounds: Any, rate: Any, sparsities: Any) -> list[float]:
    """The sparsity after each round."""
    if (sparsities is None) == (rate is None and rounds is None):
        raise ValueError("pass either `rounds` and `rate`, or `sparsities`, one for each round.")
    if sparsities is None:
        if rate is None or rounds is None:
            raise ValueError(f"pass both `rounds` and `rate`, got rounds={rounds!r}, rate={rate!r}.")
        check_whole(rounds=rounds)
        check_fraction("rate", rate)
        if not rate > 0:
            raise ValueError(f"`rate` must be in (0, 1), got {rate!r}: a round would remove nothing.")
        return [pruned_after(float(rate), r) for r in range(1, rounds + 1)]
    found = []
    for share in sparsities:
        check_fraction("sparsities", share)
        if not share > (found[-1] if found else 0):
            raise ValueError(
                f"`sparsities` must rise from above 0, as each is the fraction removed in all, got {list(sparsities)}."
            )
        found.append(float(share))
    if not found:
        raise ValueError("`sparsities` must hold one for each round, got none.")
    return found


def steps_of(steps: Any, trainings: int, rewind: Any) -> list[int]:
    """The number of steps of each training."""
    if not callable(getattr(rewind, "restore", None)):
        raise TypeError(f"`rewind` must be Finetune(), Rewind(step), ..., got {rewind!r}.")
    if isinstance(steps, Sequence | np.ndarray) and not isinstance(steps, str):
        ends = list(steps)
        if len(ends) != trainings:
            raise ValueError(
                f"`steps` must be one number, or one for each of the {trainings} trainings (round 0 is the dense one), "
                f"got {len(ends)}."
            )
        check_whole(at_least=0, steps=ends[0])
        for number in ends[1:]:
            check_whole(steps=number)
    else:
        check_whole(steps=steps)
        ends = [int(steps)] * trainings
    if any(end <= rewind.step for end in (ends if rewind.step else ends[1:])):
        raise ValueError(
            f"`rewind` must go back to a step of every round, got {rewind!r} with steps={steps}: the last one is "
            f"{min(ends) - 1}."
        )
    return list(map(int, ends))
