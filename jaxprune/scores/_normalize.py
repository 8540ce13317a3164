"""Normalisation within each layer, so that one global threshold can compare layers."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.float_range import exponent_of, magnitude_bits, scaled, widened
from jaxprune.params import PyTree, is_float_array

By = Literal["mean", "max", "l2", "sum"]


def normalize(scores: PyTree, by: By = "mean") -> PyTree:
    """Divides the scores of each leaf by a size of that leaf: `score / size(|score|)`.

    Args:
      scores: pytree of score arrays.
      by: the size: the "mean", "max", "l2" norm or "sum" of |score| over the leaf.

    Returns:
      Tree like `scores`, in float32. A leaf of zeros remains zero. Infinite scores and NaN remain as they
      are, and are left out of the size.

    Raises:
      ValueError: if `by` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.scores.normalize({"small": jnp.array([1.0, 3.0]), "large": jnp.array([10.0, 30.0])})
      {'large': Array([0.5, 1.5], dtype=float32), 'small': Array([0.5, 1.5], dtype=float32)}
    """
    if by not in get_args(By):
        raise ValueError(f"`by` must be one of {', '.join(map(repr, get_args(By)))}, got {by!r}.")

    def divide(score: jax.Array) -> jax.Array:
        if not is_float_array(score) or score.size == 0:
            return score
        score = widened(score)
        counts = jnp.isfinite(score)
        # Scaled by the largest first: sums and squares of large scores would overflow float32.
        largest = jnp.max(jnp.where(counts, magnitude_bits(score), 0))
        exponent = exponent_of(lax.bitcast_convert_type(largest, jnp.float32))
        unit = jnp.where(counts, scaled(score, exponent), score)
        sizes = jnp.where(counts, jnp.abs(unit), 0).ravel()
        size = {"mean": jnp.sum, "max": jnp.max, "sum": jnp.sum, "l2": jnp.linalg.norm}[by](sizes)
        if by == "mean":
            size = size / jnp.maximum(jnp.sum(counts, dtype=jnp.float32), 1)
        return unit / jnp.where(size > 0, size, 1)

    return jax.tree.map(divide, scores)
