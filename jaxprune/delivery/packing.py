"""Zeros left out of an array: the other values, and one bit an entry (or the places in each group of m) for where."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

_GROUPS = (2, 4, 8, 16)  # lengths m of groups that are tried
_HEADER = 200  # bytes that two more names cost
_SAMPLE = 4096  # groups that are counted first


class Packed(NamedTuple):
    """An array without its zeros.

    values: those of the entries that are stored, in row-major order with `axis` moved to the end; where: the bits that
    say which these are, 8 a byte from the lowest; shape: of the array; axis: that of the groups; n, m: n entries of
    each m consecutive ones are stored, and `where` has the place of each in its group. (0, 0): one bit an entry.
    """

    values: np.ndarray
    where: np.ndarray
    shape: tuple[int, ...]
    axis: int = -1
    n: int = 0
    m: int = 0


def pack(array: np.ndarray) -> Packed | None:
    """The array without the entries whose bits are all zero; None if that takes no less space.

    A negative zero and a NaN are stored as they are. If the entries come n of every m along an axis, the places of
    these n are stored where that takes no more space than one bit an entry.
    """
    if array.ndim == 0 or array.size == 0:
        return None
    kept = _bits(array) != 0
    count, bits = int(np.count_nonzero(kept)), 8 * array.dtype.itemsize
    one_each = count * bits + array.size
    pattern = _pattern(kept, bits, one_each)
    cost = one_each if pattern is None else pattern[0]
    if cost // 8 + _HEADER >= array.nbytes:
        return None
    if pattern is None:
        return Packed(array[kept], np.packbits(kept, bitorder="little"), array.shape, array.ndim - 1)
    _, axis, n, m = pattern
    moved = np.moveaxis(array, axis, -1).reshape(-1, m)
    # The first n by order: those that are kept, then, where a group has fewer, zeros.
    first = np.argsort(~np.moveaxis(kept, axis, -1).reshape(-1, m), axis=1, kind="stable")[:, :n]
    places = np.sort(first, axis=1)
    values = np.take_along_axis(moved, places, axis=1).ravel()
    digits = (places[..., None] >> np.arange(_width(m))) & 1
    return Packed(values, np.packbits(digits.astype(bool), bitorder="little"), array.shape, axis, n, m)


def unpack(packed: Packed) -> np.ndarray:
    """The array, bit for bit.

    Raises:
      ValueError: if the parts do not fit each other.
    """
    size = math.prod(packed.shape)
    _check(packed, size)
    bits = np.unpackbits(packed.where, bitorder="little")
    if packed.m:
        width = _width(packed.m)
        used = size // packed.m * packed.n * width
        places = bits[:used].reshape(-1, packed.n, width) @ (1 << np.arange(width))
        if np.any(places >= packed.m) or np.any(np.diff(places, axis=1) <= 0):
            raise ValueError("its places do not rise within a group")
        kept = np.zeros((size // packed.m, packed.m), bool)
        np.put_along_axis(kept, places, True, axis=1)
        kept = kept.ravel()
    else:
        used, kept = size, bits[:size].astype(bool)
        if np.count_nonzero(kept) != packed.values.size:
            raise ValueError(f"it has {packed.values.size} values for {np.count_nonzero(kept)} places")
    if np.any(bits[used:]):
        raise ValueError("it has bits beyond its last entry")
    moved = list(packed.shape)
    moved.append(moved.pop(packed.axis))
    flat = np.zeros(size, packed.values.dtype)
    flat[kept] = packed.values
    return np.ascontiguousarray(np.moveaxis(flat.reshape(moved), -1, packed.axis))


def _check(packed: Packed, size: int) -> None:
    """Raises ValueError unless the sizes fit: what is stored bounds what is allocated."""
    if packed.values.ndim != 1 or packed.where.ndim != 1 or packed.where.dtype != np.uint8:
        raise ValueError("its values or its bits are not in one row")
    if not 0 <= packed.axis < len(packed.shape):
        raise ValueError(f"it has no axis {packed.axis}")
    bits = size
    if packed.m:
        if packed.m not in _GROUPS or not 0 < packed.n < packed.m or packed.shape[packed.axis] % packed.m:
            raise ValueError(f"{packed.n} of {packed.m} is no pattern along an axis of shape {packed.shape}")
        groups = size // packed.m
        if packed.values.size != groups * packed.n:
            raise ValueError(f"it has {packed.values.size} values for {groups} groups of {packed.n}")
        bits = groups * packed.n * _width(packed.m)
    if packed.where.size != -(-bits // 8):
        raise ValueError(f"it has {packed.where.size} bytes of bits for an array of shape {packed.shape}")


def _pattern(kept: np.ndarray, bits: int, limit: int) -> tuple[int, int, int, int] | None:
    """(bits in all, axis, n, m) of the pattern n of m that takes the fewest bits, if these are at most `limit`."""
    found: list[tuple[int, int, int, int]] = []
    for axis, length in enumerate(kept.shape):
        for m in _GROUPS:
            if length % m:
                continue
            groups = np.moveaxis(kept, axis, -1).reshape(*np.delete(kept.shape, axis), length // m, m)

            def cost(n: int, m: int = m) -> int:
                return kept.size // m * n * (bits + _width(m))

            sample = groups[(slice(None, _SAMPLE),) + (0,) * (groups.ndim - 3)] if groups.ndim > 2 else groups
            if cost(max(1, int(sample.sum(-1).max()))) > limit:
                continue
            n = max(1, int(groups.sum(-1, dtype=np.uint8).max()))
            if n < m and cost(n) <= limit:
                found.append((cost(n), axis, n, m))
    return min(found, default=None, key=lambda entry: (entry[0], entry[3], -entry[1]))


def _width(m: int) -> int:
    """Bits of a place in a group of m."""
    return (m - 1).bit_length()


def _bits(array: np.ndarray) -> Any:
    """The bits of each entry, as integers; a complex number has two, joined by or."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "c":
        real, imaginary = np.moveaxis(
            array.view(f"u{array.dtype.itemsize // 2}").reshape(*array.shape, 2), -1, 0
        )
        return real | imaginary
    return array.view(f"u{array.dtype.itemsize}")
