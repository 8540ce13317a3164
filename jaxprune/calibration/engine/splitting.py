"""Calibration batches cut into smaller ones along their first axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.jaxprs import is_array_leaf, trace
from jaxprune.params import PyTree


def split_batches(
    fn: Callable[..., Any], params: PyTree, inputs: Sequence[tuple[Any, ...]], count: int
) -> list[tuple[Any, ...]]:
    """At least `count` batches of the same samples, or as many as there are samples; or the batches as they are.

    Batches stay whole if their arrays differ in the length of the first axis, or `fn` does not take parts of them.
    """
    arrays = [x for x in jax.tree.leaves(inputs[0]) if is_array_leaf(x)]
    lengths = {np.shape(x)[:1] for x in arrays}
    if len(inputs) >= count or len(lengths) != 1 or () in lengths:
        return list(inputs)
    samples = lengths.pop()[0]
    wanted = max(len(inputs) * samples // count, 1)
    size = next((n for n in range(min(wanted, samples), 0, -1) if samples % n == 0), 0)
    if not size or not _takes(fn, params, inputs[0], samples, size):
        return list(inputs)
    return [_part(batch, start, size) for batch in inputs for start in range(0, samples, size)]


def _part(batch: Any, start: int, size: int) -> Any:
    return jax.tree.map(lambda x: x[start : start + size] if is_array_leaf(x) else x, batch)


def _takes(fn: Callable[..., Any], params: PyTree, batch: Any, samples: int, size: int) -> bool:
    """Whether the outputs for a part of a batch have the shapes of a part of the outputs."""
    whole = _shapes(fn, params, batch)
    try:
        part = _shapes(fn, params, _part(batch, 0, size))
    except Exception:  # whatever a function raises that has its batch size written down
        return False
    cut = [(size, *shape[1:]) if shape[:1] == (samples,) else shape for shape in whole]
    return part == cut


def _shapes(fn: Callable[..., Any], params: PyTree, batch: tuple[Any, ...]) -> list[tuple[int, ...]]:
    return [out.aval.shape for out in trace(fn, params, batch).jaxpr.outvars]
