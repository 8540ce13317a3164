"""Scores of units that lie across leaves: the sum over all their weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.float_range import INFINITY, exponent_of, scaled, unscaled, widened
from jaxprune.surgery.layouts import Layout, by_unit


class Slices(NamedTuple):
    """Sums over slices: total * 2^exponent, with the bits of extremes among their entries."""

    total: jax.Array
    exponent: jax.Array
    top: jax.Array  # of the magnitudes
    highest: jax.Array
    lowest: jax.Array


def unit_sums(
    leaves: Sequence[Any], layouts: Sequence[Sequence[Layout | None]], sizes: Sequence[int]
) -> list[Any]:
    """The sum of each unit's entries as float32, by group.

    Equal units have equal sums. A unit that holds an inf has inf, one with a NaN has NaN; finite sums beyond
    float32 are its largest number. Leaves that hold no floats count nothing.

    Args:
      leaves: arrays, all of NumPy or all of JAX.
      layouts: for each leaf that of each axis; None for an axis without units.
      sizes: number of units of each group.
    """
    found: list[list[Any]] = [[] for _ in sizes]
    on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    for leaf, of_leaf in zip(leaves, layouts, strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        for axis, layout in enumerate(of_leaf):
            if layout:
                for group, slices in _slices(leaf, axis, layout, on_host):
                    found[group].append(slices)
    total = _total_on_host if on_host else _total
    module = np if on_host else jnp
    return [
        total(slices) if slices else module.zeros(size, np.float32)
        for slices, size in zip(found, sizes, strict=True)
    ]


def _slices(leaf: Any, axis: int, layout: Layout, on_host: bool) -> Iterator[tuple[int, Any]]:
    """(group, slices in an array of shape (units, n)) for each place of a group along an axis."""
    others = tuple(dim for dim in range(leaf.ndim) if dim != axis)
    if on_host:
        wide = leaf if leaf.dtype == np.float32 else leaf.astype(np.float32)
        with np.errstate(invalid="ignore"):
            sums = wide.sum(others, dtype=np.float64)
        if not np.isfinite(sums).all():  # NaN where inf meets -inf
            sums = _infinite(sums, wide.max(others), wide.min(others))
        yield from by_unit(layout, sums[:, None])
        return
    sums = _sums(leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else widened(leaf), others)
    columns = [by_unit(layout, column[:, None]) for column in sums]
    for places in zip(*columns, strict=True):
        yield places[0][0], Slices(*(slices for _, slices in places))


def _sums(x: jax.Array, others: tuple[int, ...]) -> Slices:
    # Extremes of the bits and not of the floats, whose denormals are flushed.
    bits = lax.bitcast_convert_type(x, jnp.int32)
    magnitude, sign = bits & 0x7FFFFFFF, bits >> 31
    rank = (magnitude ^ sign) - sign
    top = jnp.max(magnitude, others, keepdims=True, initial=0)
    exponent = exponent_of(lax.bitcast_convert_type(top, jnp.float32))
    total = jnp.sum(scaled(x, exponent), others)
    extremes = jnp.max(rank, others, initial=-INFINITY - 1), jnp.min(rank, others, initial=INFINITY + 1)
    return Slices(total, exponent.reshape(total.shape), top.reshape(total.shape), *extremes)


def _total(slices: Sequence[Slices]) -> jax.Array:
    """The sum over all slices of each unit."""
    total, exponents, tops, highest, lowest = (
        jnp.concatenate(column, axis=1) for column in zip(*slices, strict=True)
    )
    top, high, low = jnp.max(tops, 1), jnp.max(highest, 1), jnp.min(lowest, 1)
    exponent = exponent_of(lax.bitcast_convert_type(top, jnp.float32))
    # What is 2^-200 of the largest is nothing to a float32.
    total = jnp.sum(scaled(total, jnp.minimum(exponent[:, None] - exponents, 200)), axis=1)
    result = unscaled(total, exponent)
    largest = jnp.where(total < 0, -jnp.float32(_LARGEST), jnp.float32(_LARGEST))
    result = jnp.where(jnp.isinf(result), largest, result)
    result = jnp.where(high == INFINITY, jnp.inf, jnp.where(low == -INFINITY, -jnp.inf, result))
    return jnp.where(top > INFINITY, jnp.nan, result)


def _total_on_host(slices: Sequence[np.ndarray]) -> np.ndarray:
    """The same from sums in float64, which float32 values do not overflow: inf is one of them."""
    columns = np.concatenate(slices, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        total = columns.sum(1)
        result = np.clip(total.astype(np.float32), -_LARGEST, _LARGEST)
    if np.isfinite(total).all():
        return result
    return _infinite(result, columns.max(1), columns.min(1)).astype(np.float32)


def _infinite(sums: np.ndarray, highest: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """The sums, but NaN, inf or -inf where one of the terms is, in this order."""
    sums = np.where(highest == np.inf, np.inf, np.where(lowest == -np.inf, -np.inf, sums))
    return np.where(np.isnan(highest), np.nan, sums)


_LARGEST = np.finfo(np.float32).max
