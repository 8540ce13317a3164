"""Scores as integers in the same order, so that a search can go over the bits."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

_UNSIGNED = {2: jnp.uint16, 4: jnp.uint32}


def key_dtype(scores: Sequence[jax.Array]) -> jnp.dtype:
    """The float type all leaves are compared in: their own if it is one 16-bit type for all, else float32."""
    dtypes = {score.dtype for score in scores}
    if len(dtypes) == 1 and dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}:
        return dtypes.pop()
    return jnp.dtype(jnp.float32)


def largest_key(dtype: jnp.dtype) -> int:
    """The key of +inf."""
    return (1 << (8 * dtype.itemsize - 1)) + _infinity(dtype)


def order_keys(score: jax.Array, pruned: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """Keys in the order of the scores: pruned < NaN < -inf < ... < -0.0 = 0.0 < ... < inf.

    The bits of a non-negative float, read as an integer, keep its order; a negative float of magnitude bits m
    becomes -m. That sends both zeros to 0, and nothing is computed in floats, so denormals are safe where the
    hardware flushes them. The halfway offset makes the keys unsigned.

    Args:
      score: float array, any shape.
      pruned: bool array of that shape, or None.
      dtype: float32, bfloat16 or float16, to which the score is cast; no wider than that at run time.

    Returns:
      uint32 or uint16 array of the score's shape: 0 for pruned, 1 for NaN, `largest_key` for +inf.
    """
    unsigned = _UNSIGNED[dtype.itemsize]
    half = 1 << (8 * dtype.itemsize - 1)
    bits = lax.bitcast_convert_type(_widen(score, dtype), unsigned)
    magnitude = bits & unsigned(half - 1)
    keys = jnp.where(bits >= unsigned(half), unsigned(half) - magnitude, unsigned(half) + magnitude)
    keys = jnp.where(magnitude > unsigned(_infinity(dtype)), unsigned(1), keys)
    return keys if pruned is None else jnp.where(pruned, unsigned(0), keys)


def _widen(score: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if score.dtype == jnp.bfloat16 and dtype == jnp.float32:
        # A shift rather than a cast, which may flush denormals.
        bits = lax.bitcast_convert_type(score, jnp.uint16).astype(jnp.uint32) << 16
        return lax.bitcast_convert_type(bits, jnp.float32)
    return score.astype(dtype)


def _infinity(dtype: jnp.dtype) -> int:
    return {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}[dtype.name]
