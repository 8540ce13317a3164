"""Scores as integers in the same order, so that a search can go through the bits."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.float_range import widened

_SIGNED = {2: jnp.int16, 4: jnp.int32}


def key_dtype(scores: Sequence[jax.Array]) -> jnp.dtype:
    """The float type in which all leaves are compared: their own if all have the same 16-bit type, else float32."""
    dtypes = {score.dtype for score in scores}
    if len(dtypes) == 1 and dtypes <= {jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}:
        return dtypes.pop()
    return jnp.dtype(jnp.float32)


def order_keys(score: jax.Array, pruned: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    """Integers in the order of the scores: pruned < NaN < -inf < ... < -0.0 = 0.0 < ... < inf.

    The bits of non-negative floats, read as integers, have the order of the floats. A negative float of magnitude
    bits m becomes -m, so that both zeros become 0. Nothing is computed in floats, so denormals are safe on
    hardware that flushes them. The integers are signed, because vector units compare only signed integers.

    Args:
      score: float array, any shape.
      pruned: bool array of that shape, or None.
      dtype: float32, bfloat16 or float16, in which the scores are compared.

    Returns:
      int32 array of the shape of the score, with values in the range of the width of `dtype`.
    """
    signed = _SIGNED[dtype.itemsize]
    lowest = jnp.iinfo(signed).min
    bits = lax.bitcast_convert_type(widened(score) if dtype == jnp.float32 else score.astype(dtype), signed)
    magnitude = bits & signed(jnp.iinfo(signed).max)
    sign = bits >> (
        8 * dtype.itemsize - 1
    )  # 0 or -1; arithmetic instead of a select, which is slower on CPUs
    keys = (magnitude ^ sign) - sign
    keys = jnp.where(magnitude > signed(infinity(dtype)), signed(lowest + 1), keys).astype(jnp.int32)
    return keys if pruned is None else jnp.where(pruned, lowest, keys)


def threshold_key(position: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The key at a uint32 position in [0, 2^bits), counted from the lowest key."""
    half = jnp.uint32(1 << (8 * dtype.itemsize - 1))
    return lax.bitcast_convert_type(position - half, jnp.int32)


def positions(dtype: jnp.dtype) -> int:
    """A position above that of all keys."""
    return (1 << (8 * dtype.itemsize - 1)) + infinity(dtype) + 1


def infinity(dtype: jnp.dtype) -> int:
    return {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}[dtype.name]
