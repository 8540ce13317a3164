"""How many steps each training of an experiment in rounds has, and from which of them a rewind starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxprune.whole_numbers import check_whole


def lengths_of(steps: Any, trainings: int, first_at_least: int = 1) -> tuple[int, ...]:
    """The number of steps of each training.

    Args:
      steps: one number, or one for each training.
      trainings: number of trainings.
      first_at_least: the fewest steps that the first training, the dense one, may have.

    Raises:
      ValueError: another number of entries than trainings; what is no whole number of at least 1.

    Example:
      >>> from jaxprune.round_steps import lengths_of
      >>> lengths_of(5, 3), lengths_of([0, 5, 7], 3, first_at_least=0)
      ((5, 5, 5), (0, 5, 7))
    """
    if not is_one_each(steps):
        check_whole(steps=steps)
        return (int(steps),) * trainings
    if len(steps) != trainings:
        raise ValueError(
            f"`steps` must be one number, or one for each of the {trainings} trainings (round 0 is the dense one), "
            f"got {steps!r}."
        )
    for number, length in enumerate(steps):
        check_whole(1 if number else first_at_least, **{f"steps[{number}]": length})
    return tuple(map(int, steps))


def is_one_each(steps: Any) -> bool:
    """Whether `steps` holds a number for each training."""
    return isinstance(steps, Sequence | np.ndarray) and not isinstance(steps, str) and np.ndim(steps) > 0


def check_rewind(rewind: Any, lengths: Sequence[int]) -> None:
    """Raises unless every training has the step that `rewind` goes back to.

    Raises:
      TypeError: what is no initialization.
      ValueError: a training that is too short.
    """
    if isinstance(rewind, type) or not callable(getattr(rewind, "restore", None)):
        raise TypeError(f"`rewind` must be Rewind(step), Finetune(), ..., got {rewind!r}.")
    # Only the dense training may have no steps, and then the state to go back to is the one that it is given.
    if rewind.step and rewind.step >= min(lengths):
        steps = lengths[0] if len({*lengths}) == 1 else tuple(lengths)
        raise ValueError(
            f"`rewind` must go back to a step of the round, got {rewind!r} with steps={steps}: the last one is "
            f"{min(lengths) - 1}."
        )
