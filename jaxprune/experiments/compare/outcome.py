"""What the trainings of a method give."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxprune.params import PyTree


class Trained(NamedTuple):
    """What a program returns.

    params, pruned: of the first seed, at the end: parameters and masks, or smaller parameters and what was removed.
    kept: path -> number of kept weights (seeds,); rounds, curve: metrics at the end of each training (seeds,
    trainings), and within (seeds, trainings, points).
    """

    params: PyTree
    pruned: Any
    kept: dict[str, Any]
    rounds: dict[str, Any]
    curve: dict[str, Any]
