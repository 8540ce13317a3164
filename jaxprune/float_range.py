"""Exact powers of two over the whole range of float32, denormals included, which XLA's CPU code flushes to 0.

Squares or sums of numbers near an end of the range leave it. Divided by a power of two near the largest number,
nothing overflows, and the numbers that vanish are too small to change the result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

INFINITY = 0x7F800000  # the bits of inf; those of NaN lie above
_SMALLEST = -149  # exponent of the smallest denormal


def _widened(x: jax.Array) -> jax.Array:
    """`x` as float32."""
    if x.dtype == jnp.bfloat16:
        # A shift rather than a cast, which may flush denormals.
        return lax.bitcast_convert_type(
            lax.bitcast_convert_type(x, jnp.uint16).astype(jnp.uint32) << 16, jnp.float32
        )
    return x.astype(jnp.float32)


def _widened_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return widened(*primals), tangents[0].astype(jnp.float32)


widened = jax.custom_jvp(_widened)  # a shift of bits has no derivative of its own
widened.defjvp(_widened_jvp)


def magnitude_bits(x: jax.Array) -> jax.Array:
    """int32 in the order of `|x|`, for float32."""
    return lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF


def exponent_of(x: jax.Array) -> jax.Array:
    """floor(log2 |x|) of float32 as int32; -149 for 0, 127 at most.

    >>> exponent_of(jnp.float32([5.0, 0.25]))
    Array([ 2, -2], dtype=int32)
    """
    bits = magnitude_bits(x)
    of_denormal = (lax.bitcast_convert_type(bits.astype(jnp.float32), jnp.int32) >> 23) - 127 + _SMALLEST
    normal = jnp.minimum((bits >> 23) - 127, 127)
    return jnp.where(bits >= 1 << 23, normal, jnp.where(bits > 0, of_denormal, _SMALLEST))


def scaled(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """`x / 2^exponent`."""
    bits = magnitude_bits(x)
    # The bits of a denormal count units of 2^-149.
    from_denormal = bits.astype(jnp.float32) * _power(jnp.maximum(_SMALLEST - exponent, -126))
    is_negative = lax.bitcast_convert_type(x, jnp.int32) < 0
    from_denormal = jnp.where(is_negative, -from_denormal, from_denormal)
    return jnp.where(bits < 1 << 23, from_denormal, _times_power(x, -exponent))


def unscaled(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """`x * 2^exponent`, rounded if it is denormal. The result must be at least 2^exponent / 2^30."""
    in_smallest = jnp.abs(x) * _power(jnp.clip(exponent - _SMALLEST, 0, 60))
    bits = jnp.round(jnp.minimum(in_smallest, 1 << 23)).astype(jnp.int32)
    sign = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(1 << 31))
    is_denormal = (exponent <= _SMALLEST + 60) & (in_smallest < 1 << 23)
    return jnp.where(
        is_denormal, lax.bitcast_convert_type(bits | sign, jnp.float32), _times_power(x, exponent)
    )


def _times_power(x: jax.Array, exponent: jax.Array) -> jax.Array:
    half = exponent // 2  # 2^exponent itself may lie outside the range
    return x * _power(half) * _power(exponent - half)


def _power(exponent: jax.Array) -> jax.Array:
    """2^exponent for exponents of normal numbers."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
