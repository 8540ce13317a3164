"""Weights that the calibration data say nothing about: those whose inputs are 0 in every row."""

from __future__ import annotations

import warnings

_NAMED = 20  # paths that a warning names


def warn_of_unseen(found: dict[str, tuple[int, int]], then: str, stacklevel: int) -> None:
    """Warns of unseen weights, if there are any.

    Args:
      found: path -> how many weights of it are unseen, and how many it has.
      then: a sentence that says what becomes of them.
      stacklevel: of the caller, as for `warnings.warn`.
    """
    named = [f"{path!r} ({n} of {size})" for path, (n, size) in found.items() if n]
    if not named:
        return
    more = f", ... ({len(named)} in all)" if len(named) > _NAMED else ""
    warnings.warn(
        f"`batches` say nothing about weights whose inputs are 0 in every row: {', '.join(named[:_NAMED])}"
        f"{more}. {then}. Either no batch reaches them, and there should be one that does, or all that feeds them "
        "is 0 or pruned.",
        stacklevel=stacklevel + 1,
    )
