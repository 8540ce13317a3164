"""Weights about which the calibration data have no information: their inputs are 0 in every row."""

from __future__ import annotations

import warnings

_NAMED = 20  # paths that a warning names


def warn_of_unseen(found: dict[str, tuple[int, int]], then: str, stacklevel: int) -> None:
    """Warns of unseen weights, if there are any.

    Args:
      found: path -> number of its unseen weights, and number of all its weights.
      then: a sentence, without the period, that says what is done with the unseen weights.
      stacklevel: stack level of the caller, as for `warnings.warn`.
    """
    named = [f"{path!r} ({n} of {size})" for path, (n, size) in found.items() if n]
    if not named:
        return
    more = f", ... ({len(named)} in all)" if len(named) > _NAMED else ""
    warnings.warn(
        f"`batches` say nothing about weights whose inputs are 0 in every row: {', '.join(named[:_NAMED])}"
        f"{more}. {then}. Either no batch reaches these weights: add one that does. Or the units that they multiply "
        "are all 0 or pruned.",
        stacklevel=stacklevel + 1,
    )
