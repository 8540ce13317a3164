"""The score of a unit of several weights: the mean of their scores."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.float_range import INFINITY, exponent_of, scaled, unscaled, widened
from jaxprune.host import namespace


def mean_over(
    scores: jax.Array, axes: tuple[int, ...], inside: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Mean over axes, which remain with size 1. It is exact for equal scores, and inf if one score is inf.

    If all weights of a unit have one score (as `scores.l2_norm` returns), the mean must equal it exactly, because
    rounding in the sum could reorder close units. `inside` marks the entries that count.
    """
    if any(scores.shape[axis] == 0 for axis in axes):
        return namespace(scores).zeros(
            [min(n, 1) if i in axes else n for i, n in enumerate(scores.shape)], np.float32
        )
    if isinstance(scores, np.ndarray):
        return _mean_on_host(scores, axes, inside)
    return _mean(scores, axes, inside)


def _mean_on_host(scores: np.ndarray, axes: tuple[int, ...], inside: Any) -> Any:
    """The mean in float64, which holds the sum of equal float32 values exactly."""
    if inside is not None:
        scores = np.where(inside, scores, 0)
    size = math.prod(scores.shape[i] for i in axes) if inside is None else inside.sum(axes, keepdims=True)
    if scores.dtype.itemsize < 4:
        scores = scores.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        mean = (scores.sum(axes, dtype=np.float64, keepdims=True) / np.maximum(size, 1)).astype(np.float32)
        if not np.isfinite(mean).all():  # NaN where inf meets -inf
            highest, lowest = scores.max(axes, keepdims=True), scores.min(axes, keepdims=True)
            infinite = np.where(highest == np.inf, np.inf, np.where(lowest == -np.inf, -np.inf, mean))
            mean = np.where(np.isnan(highest), np.nan, infinite).astype(np.float32)
    return mean


@functools.partial(jax.jit, static_argnames="axes")
def _mean(scores: jax.Array, axes: tuple[int, ...], inside: jax.typing.ArrayLike | None) -> jax.Array:
    """The mean as lowest entry plus mean difference to it, both over a power of two near the largest entry."""
    scores = widened(scores)
    counts = True if inside is None else inside
    # Extremes of the bits and not of the floats, whose denormals are flushed.
    bits = jnp.where(counts, lax.bitcast_convert_type(scores, jnp.int32), 0)
    magnitude, sign = bits & 0x7FFFFFFF, bits >> 31
    rank = (magnitude ^ sign) - sign
    top = jnp.max(magnitude, axis=axes, keepdims=True)
    lowest = jnp.min(jnp.where(counts, rank, INFINITY), axis=axes, keepdims=True)
    highest = jnp.max(jnp.where(counts, rank, -INFINITY), axis=axes, keepdims=True)
    low = lax.bitcast_convert_type(
        jnp.where(lowest < 0, (-lowest) | jnp.int32(-(1 << 31)), lowest), jnp.float32
    )
    exponent = exponent_of(lax.bitcast_convert_type(top, jnp.float32))
    low = scaled(low, exponent)
    differences = jnp.where(counts, scaled(scores, exponent) - low, 0)
    total = jnp.sum(differences, axis=axes, keepdims=True)
    if inside is None:
        size = math.prod(scores.shape[axis] for axis in axes)
    else:
        size = jnp.sum(inside, axis=axes, keepdims=True, dtype=jnp.float32)
    mean = unscaled(low + total / size, exponent)
    mean = jnp.where(highest == INFINITY, jnp.inf, jnp.where(lowest == -INFINITY, -jnp.inf, mean))
    return jnp.where(top > INFINITY, jnp.nan, mean)
