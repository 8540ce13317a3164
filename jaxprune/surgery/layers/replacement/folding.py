"""Folding a linear map into the weight, the scale and the biases of a tail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs.views import Matrix
from jaxprune.surgery.layers.graph import Graph
from jaxprune.surgery.layers.replacement.tails import Tail, vector


def fold(
    graph: Graph, tail: Tail, arrays: Sequence[Any], linear: np.ndarray, constant: np.ndarray
) -> list[Any] | None:
    """Arrays of the parameters with which the tail's value v becomes v @ linear + constant.

    Args:
      graph: the function.
      tail: the tail of v.
      arrays: the arrays of the parameters.
      linear: (size, size), float64; diagonal where the tail has no weight.
      constant: (size,), zero where the tail takes none.

    Returns:
      All arrays, or None if an entry of a scale is zero, through which nothing can be folded.
    """
    new = list(arrays)
    for step in tail.steps:
        by = vector(graph, step, tail.size, arrays)
        last = step is tail.steps[-1] and tail.weight is None
        if step.op in ("add", "sub"):
            sign = 1 if step.op == "add" else -1
            if step.place:
                _set(new, step.place, (by @ linear + sign * constant)[None])
                constant = np.zeros_like(constant)
            else:
                constant = constant + sign * (by @ linear - by)
        elif last and step.place:
            _set(new, step.place, (by * np.diag(linear))[None])
        elif not by.all():
            return None
        else:
            scale = by if step.op == "mul" else 1 / by
            linear = scale[:, None] * linear / scale
            constant = constant / scale
    if tail.weight:
        leaf, at = tail.weight
        _set(new, tail.weight, at.of(_float64(new[leaf]))[0] @ linear)
    return new


def _set(arrays: list[Any], place: tuple[int, Matrix], entries: np.ndarray) -> None:
    """Writes entries into an array, whose dtype and placement it keeps."""
    leaf, at = place
    old, new = arrays[leaf], _float64(arrays[leaf])
    at.put(new, entries[None])
    if isinstance(old, jax.Array):
        arrays[leaf] = jax.device_put(new.astype(old.dtype), old.sharding)
    else:
        arrays[leaf] = jnp.asarray(new, np.result_type(old))


def _float64(array: Any) -> np.ndarray:
    return np.array(np.asarray(array), np.float64, order="C")
