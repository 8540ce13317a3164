"""Counts of several rounds, for loops in which the round is traced."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.selection.counts import Count, as_count, stack


def counts_of_rounds(rounds: list[Any]) -> Any:
    """The counts of all rounds as arrays with one row per round, in the form of one: a `Count` or a list of them.

    Example:
      >>> from jaxprune.masking.rounds import counts_of_rounds
      >>> first, second = counts_of_rounds([[1, 2], [3, 4], [5, 6]])
      >>> second.low
      Array([2, 4, 6], dtype=uint32)
    """
    if isinstance(rounds[0], list):
        return [_column(list(column)) for column in zip(*rounds, strict=True)]
    return _column(rounds)


def _column(counts: list[Any]) -> Count:
    if not all(isinstance(count, int) for count in counts):
        return stack([as_count(count) for count in counts])
    words = ([count >> 32 for count in counts], [count & 0xFFFFFFFF for count in counts])
    return Count(
        *(jnp.asarray(np.array(word, np.uint32)) for word in words)
    )  # one constant, no operation a round
