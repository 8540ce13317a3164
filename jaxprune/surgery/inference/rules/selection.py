"""Entries of an axis at constant positions, as pieces of the axis if they form runs."""

from __future__ import annotations

from collections.abc import Sequence

from jaxprune.surgery.inference.axes import Axis, Reason, concatenated, freeze, fresh, is_frozen, size_of
from jaxprune.surgery.inference.rules.shapes import sliced


def selected(axis: Axis, positions: Sequence[int], reason: Reason) -> Axis:
    """The axis of the entries of another axis at `positions`, in their order.

    Neighbours are a slice, and every k-th entry is a column of the axis as rows of k. An axis that is permuted in
    another way is frozen.
    """
    why = reason._replace(text="permuted by constants")
    runs = None if is_frozen(axis) else _runs(positions, size_of(axis))
    if runs is None:
        freeze(axis, why)
        return fresh(len(positions), why)
    return concatenated(
        [
            sliced(axis, start, start + (count - 1) * step + 1, step, count, reason)
            for start, step, count in runs
        ]
    )


def _runs(positions: Sequence[int], size: int) -> list[tuple[int, int, int]] | None:
    """(start, step, count) of each run, or None if most runs have a single entry."""
    runs: list[tuple[int, int, int]] = []
    i = 0
    while i < len(positions):
        start = positions[i]
        step = positions[i + 1] - start if i + 1 < len(positions) else 1
        count = 1
        if step == 1:
            while i + count < len(positions) and positions[i + count] == start + count:
                count += 1
        elif 1 < step <= size and size % step == 0 and start < step:
            column = list(range(start, size, step))
            if list(positions[i : i + len(column)]) == column:
                count = len(column)
        runs.append((start, step if count > 1 else 1, count))
        i += count
    return runs if len(runs) == 1 or 2 * len(runs) <= len(positions) else None
