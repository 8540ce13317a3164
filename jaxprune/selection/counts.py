"""Counts beyond 2^31 without 64-bit mode, and the rounding of `sparsity * n` in integers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

_LIMB = 16  # bits a limb: the product of two limbs fits in uint32


class Count(NamedTuple):
    """A count in [0, 2^64): `high * 2^32 + low`, both uint32 of the same shape.

    >>> int(Count.of(5_000_000_000))
    5000000000
    """

    high: jax.Array | np.ndarray
    low: jax.Array | np.ndarray

    @classmethod
    def of(cls, value: int) -> Count:
        """The count for a Python int."""
        return cls(np.asarray(value >> 32, np.uint32), np.asarray(value & 0xFFFFFFFF, np.uint32))

    def __int__(self) -> int:
        return (int(self.high) << 32) + int(self.low)


def as_count(k) -> Count:
    """`k` (an int, an integer scalar array or a `Count`) as a `Count`; traced negative values become 0."""
    if isinstance(k, Count):
        return Count(jnp.asarray(k.high, jnp.uint32), jnp.asarray(k.low, jnp.uint32))
    if isinstance(k, int | np.integer):
        if k < 0:
            raise ValueError(f"`k` must be at least 0, got {k}.")
        return Count.of(int(k))
    dtype = jnp.result_type(k)
    if not jnp.issubdtype(dtype, jnp.integer) or jnp.ndim(k) != 0:
        raise TypeError(
            f"`k` must be an int, an integer scalar array or a `Count`, got {dtype} of shape {jnp.shape(k)}. "
            "`count_to_prune` turns a sparsity into a count."
        )
    k = jnp.asarray(k)
    if jnp.issubdtype(dtype, jnp.signedinteger):
        k = jnp.maximum(k, 0)
    high = (k >> 32).astype(jnp.uint32) if dtype.itemsize == 8 else jnp.zeros((), jnp.uint32)
    return Count(high, k.astype(jnp.uint32))


def known_count(k: Any) -> int | None:
    """A known count as an int of at least 0; None for a traced one."""
    if any(isinstance(part, Tracer) for part in jax.tree.leaves(k)):
        return None
    if isinstance(k, Count):
        return int(k)
    as_count(k)  # checks it
    return max(int(k), 0)


def add(a: Count, b: Count) -> Count:
    """a + b."""
    low = a.low + b.low
    return Count(a.high + b.high + (low < a.low).astype(jnp.uint32), low)


def subtract(a: Count, b: Count) -> Count:
    """a - b for a >= b."""
    return Count(a.high - b.high - (a.low < b.low).astype(jnp.uint32), a.low - b.low)


def times(a: Count, n: jax.Array) -> Count:
    """a * n for a uint32 n and a product below 2^64."""
    a_low, a_high, n_low, n_high = a.low & 0xFFFF, a.low >> _LIMB, n & 0xFFFF, n >> _LIMB
    low, left, right = a_low * n_low, a_high * n_low, a_low * n_high
    middle = (low >> _LIMB) + (left & 0xFFFF) + (right & 0xFFFF)
    high = a.high * n + a_high * n_high + (left >> _LIMB) + (right >> _LIMB) + (middle >> _LIMB)
    return Count(high, (low & 0xFFFF) | (middle << _LIMB))


def less_equal(a: Count, b: Count) -> jax.Array:
    """a <= b."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low <= b.low))


def equal(a: Count, b: Count) -> jax.Array:
    """a == b."""
    return (a.high == b.high) & (a.low == b.low)


def minimum(a: Count, b: Count) -> Count:
    """The smaller of the two."""
    return where(less_equal(a, b), a, b)


def where(condition: jax.Array, a: Count, b: Count) -> Count:
    """`a` if the condition holds, else `b`."""
    return Count(jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low))


def as_float(a: Count) -> jax.Array:
    """A float32 near the count: for guesses only, never for a decision."""
    return a.high.astype(jnp.float32) * 2.0**32 + a.low.astype(jnp.float32)


def from_uint32(values: jax.Array) -> Count:
    """uint32 values as counts."""
    return Count(jnp.zeros_like(values), values)


def zeros_like(a: Count) -> Count:
    """Zeros of the same shape."""
    return Count(jnp.zeros_like(a.high), jnp.zeros_like(a.low))


def stack(parts: Sequence[Count]) -> Count:
    """Counts of one shape along a new first axis."""
    return Count(jnp.stack([part.high for part in parts]), jnp.stack([part.low for part in parts]))


def total(parts: Count) -> Count:
    """Exact sum of up to 2^24 counts: each byte is summed separately, and 2^24 bytes sum to less than 2^32."""
    if parts.low.size > 1 << 24:
        raise ValueError(f"`parts` must have at most 2**24 entries, got {parts.low.size}.")
    if parts.low.ndim == 0:
        return parts
    result = Count(jnp.sum(parts.high, dtype=jnp.uint32), jnp.sum(parts.low & 0xFF, dtype=jnp.uint32))
    for shift in (8, 16, 24):
        byte = jnp.sum((parts.low >> shift) & 0xFF, dtype=jnp.uint32)
        result = add(result, Count(byte >> (32 - shift), byte << shift))
    return result


def _carry(limbs: list[jax.Array]) -> list[jax.Array]:
    carried, carry = [], jnp.zeros_like(limbs[0])
    for limb in limbs:
        limb = limb + carry
        carried.append(limb & 0xFFFF)
        carry = limb >> _LIMB
    return carried


def as_written(share: Any) -> Fraction:
    """A known number as it is written in decimals: 0.9 is 9/10, not the nearest float.

    >>> as_written(0.07) * 100, as_written(np.float32(0.7))
    (Fraction(7, 1), Fraction(7, 10))
    """
    return Fraction(share if isinstance(share, numbers.Rational) else str(np.asarray(share)[()]))


def count_to_prune(sparsity, n: int):
    r"""The number of entries to prune, exactly: $k = \operatorname{round}(s\,n)$, half to even.

    A Python or NumPy float is multiplied in float64, as `round(sparsity * n)`. A traced sparsity is split
    into mantissa and exponent and multiplied in integers, which is exact for any `n`, without 64-bit mode.

    Args:
      sparsity: fraction in [0, 1]: a number, or a scalar float array (clipped to [0, 1], NaN counts as 0).
      n: number of entries, a Python int below 2^63.

    Returns:
      A Python int for a number. For an array an int32 scalar if `n < 2**31`, else a `Count`.

    Raises:
      ValueError: if a number is outside [0, 1], or `n` is negative.
      TypeError: if an array is not a floating-point scalar.

    >>> count_to_prune(0.5, 5)
    2
    >>> int(count_to_prune(jnp.float32(0.5), 7))
    4
    >>> int(count_to_prune(jnp.float32(0.75), 40_000_000_001))
    30000000001
    """
    if not 0 <= n < 1 << 63:
        raise ValueError(f"`n` must be in [0, 2**63), got {n}.")
    if isinstance(sparsity, int | float | np.floating | np.integer):
        if not 0 <= sparsity <= 1:
            raise ValueError(
                f"`sparsity` must be in [0, 1], got {sparsity}. It is a fraction: pass 0.9, not 90."
            )
        return min(round(float(sparsity) * n), n)
    sparsity = jnp.asarray(sparsity)
    if not jnp.issubdtype(sparsity.dtype, jnp.floating) or sparsity.ndim != 0:
        raise TypeError(
            f"`sparsity` must be a floating-point scalar, got {sparsity.dtype} of shape {sparsity.shape}."
        )
    k = _round_product(sparsity, n)
    return k.low.astype(jnp.int32) if n < 1 << 31 else k


def _round_product(sparsity: jax.Array, n: int) -> Count:
    """round-half-even(sparsity * n) for a float scalar in [0, 1]."""
    mantissa, shift = _split_float(sparsity)
    factor = [(n >> (_LIMB * i)) & 0xFFFF for i in range(max(1, math.ceil(n.bit_length() / _LIMB)))]
    product = [jnp.zeros((), jnp.uint32)] * (len(mantissa) + len(factor) + 1)
    for i, a in enumerate(mantissa):
        for j, b in enumerate(factor):
            term = a * jnp.uint32(b)
            product[i + j] += term & 0xFFFF
            product[i + j + 1] += term >> _LIMB
    limbs = jnp.stack(_carry(product))
    # The shift is at least 23, as sparsity <= 1: one bit below the point is kept, to round by.
    doubled = _shift_right(limbs, shift - 1)
    positions = jnp.arange(limbs.size, dtype=jnp.int32) * _LIMB
    below = jnp.clip(shift - 1 - positions, 0, _LIMB).astype(jnp.uint32)
    sticky = jnp.any((limbs & ((jnp.uint32(1) << below) - 1)) != 0)
    floor = [(doubled[i] >> 1) | ((doubled[i + 1] & 1) << (_LIMB - 1)) for i in range(4)]
    up = (doubled[0] & 1) & (sticky.astype(jnp.uint32) | (floor[0] & 1))
    rounded = _carry([floor[0] + up, *floor[1:]])
    return Count(rounded[2] | (rounded[3] << _LIMB), rounded[0] | (rounded[1] << _LIMB))


def _split_float(sparsity: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """The limbs of the integer m, and the shift s, such that sparsity = m / 2^s exactly."""
    if sparsity.dtype.itemsize < 4:
        sparsity = sparsity.astype(jnp.float32)
    # Comparisons are false for NaN, which so becomes 0.
    sparsity = jnp.where(sparsity > 0, jnp.minimum(sparsity, 1), 0)
    bits, bias = (52, 1023) if sparsity.dtype.itemsize == 8 else (23, 127)
    words = jnp.atleast_1d(lax.bitcast_convert_type(sparsity, jnp.uint32))  # little end first for float64
    exponent = (words[-1] >> (bits % 32)).astype(jnp.int32)
    fraction = words.at[-1].set(words[-1] & jnp.uint32((1 << (bits % 32)) - 1))
    implicit = (exponent > 0).astype(jnp.uint32) << (bits % 32)
    words = fraction.at[-1].set(fraction[-1] | implicit)
    limbs = [part for word in words for part in (word & 0xFFFF, word >> _LIMB)]
    return limbs, bits + bias - jnp.maximum(exponent, 1)


def _shift_right(limbs: jax.Array, shift: jax.Array) -> jax.Array:
    """The five limbs of the integer divided by 2^shift."""
    # Beyond all limbs the quotient is 0 whatever the shift, so the shift may be cut there.
    shift = jnp.minimum(shift, limbs.size * _LIMB)
    padded = jnp.concatenate([limbs, jnp.zeros(7, jnp.uint32)])
    window = lax.dynamic_slice(padded, (shift // _LIMB,), (6,))
    bit = (shift % _LIMB).astype(jnp.uint32)
    return ((window[:5] >> bit) | (window[1:] << (_LIMB - bit))) & 0xFFFF
