"""The k smallest scores of arrays in host memory, by NumPy: nothing is compiled.

For arrays of known values, compiling a program takes longer than running it. Here a sample of the scores tells
between which two values the k-th score lies. One pass counts the scores below them and extracts those between,
about one in a hundred; a second pass writes the masks. Both process the scores in pieces that fit in the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.selection.keys import infinity, key_dtype

_PIECE = 1 << 16  # scores looked at together
_SAMPLE = 1 << 16  # at most, and one of 64 scores
_SMALL = 1 << 18  # so many scores are copied and partitioned at once
_DEVIATIONS = 4  # by which the sample's bracket is wider than chance allows

_Arrays = Sequence[np.ndarray]


def keep_on_host(
    scores: _Arrays, pruned: Sequence[np.ndarray | None], k: int | list[int]
) -> list[np.ndarray]:
    """Masks that keep all but the `k` smallest scores, over all leaves or, for a list, in each of them.

    Args:
      scores, pruned: as for `select`.
      k: at least 0; a number beyond that of the scores means all of them.
    """
    if isinstance(k, list):
        return [keep_on_host([s], [p], n)[0] for s, p, n in zip(scores, pruned, k, strict=True)]
    dtype = key_dtype(scores)
    total = sum(score.size for score in scores)
    k = min(k, total)
    keeps = [
        np.ones(score.shape, bool) for score in scores
    ]  # row by row, whatever the order of the others is
    for keep, done in zip(keeps, pruned, strict=True):
        if done is not None:
            np.logical_not(done, out=keep)
    if not k:
        return keeps
    leaves = []
    for score, mask, keep in zip(scores, pruned, keeps, strict=True):
        done = None if mask is None else mask.reshape(-1)
        leaves.append(_Flat(score.reshape(-1), done, keep.reshape(-1), dtype))
    edge, below, tied = _kth(leaves, k, total)
    # Ties are pruned in the order of the leaves, and only so many that k are pruned in all.
    left = np.clip(k - below - np.cumsum([0, *tied[:-1]]), 0, None)
    for leaf, number in zip(leaves, left, strict=True):
        leaf.prune(edge, int(number))
    return keeps


@dataclasses.dataclass(frozen=True)
class _Flat:
    """A flat leaf.

    scores; pruned: the entries that were pruned before, or None; keep: the mask to write; dtype: the float type in
    which the scores are compared.
    """

    scores: np.ndarray
    pruned: np.ndarray | None
    keep: np.ndarray
    dtype: np.dtype

    def keys(self, at: Any) -> np.ndarray:
        """The keys at indices or a slice; they may be a view of the scores, so do not write to them."""
        found = host_keys(self.scores[at], self.dtype)
        return found if self.pruned is None else lowered(found, self.pruned[at])

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, self.scores.size, _PIECE):
            at = slice(start, min(start + _PIECE, self.scores.size))
            yield at, self.keys(at)

    def count(self, first: int, last: int) -> tuple[int, int, list[np.ndarray]]:
        """The number of keys below `first`, that in [first, last], and the latter keys unless all are the same."""
        below, inside, found = 0, 0, []
        for _, keys in self.pieces():
            below += int(np.count_nonzero(keys < first))
            if first == last:
                inside += int(np.count_nonzero(keys == first))
                continue
            # The difference wraps around below `first`: read without a sign it is large there.
            offset = (keys - keys.dtype.type(first)).view(f"u{keys.dtype.itemsize}")
            found.append(keys[offset <= last - first])
            inside += found[-1].size
        return below, inside, found

    def prune(self, edge: int, ties: int) -> None:
        """Prunes the keys below `edge`, and of those at `edge` the first `ties`."""
        for at, keys in self.pieces():
            if self.pruned is None:
                np.greater_equal(keys, edge, out=self.keep[at])
            else:
                self.keep[at] &= keys >= edge
            if ties:
                first = np.flatnonzero(keys == edge)[:ties]
                self.keep[at][first] = False
                ties -= first.size


def host_keys(scores: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`order_keys` of NumPy scores in the width of `dtype`; may be a view of them, so do not write to it."""
    if scores.dtype == dtype:
        bits = scores.view(f"i{dtype.itemsize}")
    elif scores.dtype == jnp.bfloat16:
        bits = (scores.view(np.uint16).astype(np.uint32) << 16).view(np.int32)
    else:
        bits = scores.astype(np.float32).view(np.int32)
    top = bits.dtype.type(infinity(dtype))
    # The bits of floats from 0 to inf are keys as they are. Read without a sign, those of all others are larger.
    if not bits.size or bits.view(f"u{dtype.itemsize}").max() <= top:
        return bits
    magnitude, sign = bits & np.iinfo(bits.dtype).max, bits >> (8 * dtype.itemsize - 1)
    is_nan = magnitude > top
    magnitude ^= sign
    magnitude -= sign
    if is_nan.any():
        magnitude[is_nan] = np.iinfo(bits.dtype).min + 1
    return magnitude


def is_fine(scores: np.ndarray) -> bool:
    """Whether no score is NaN or -inf."""
    if scores.dtype.itemsize == 8:
        return bool(np.all(scores > -np.inf))
    dtype, flat = key_dtype([scores]), scores.reshape(-1)
    pieces = (host_keys(flat[i : i + _PIECE], dtype) for i in range(0, flat.size, _PIECE))
    return all(keys.min() > -infinity(dtype) for keys in pieces)


def lowered(keys: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """The keys, with the lowest of all at pruned entries. (By bits: `where` takes five times as long.)"""
    everywhere = -pruned.view(np.int8).astype(keys.dtype)
    return (keys & ~everywhere) | (everywhere & np.iinfo(keys.dtype).min)


def _kth(leaves: Sequence[_Flat], k: int, total: int) -> tuple[int, int, list[int]]:
    """The k-th smallest key, how many keys are smaller, and how many of each leaf are equal to it."""
    if total <= _SMALL:
        each = [leaf.keys(slice(None)) for leaf in leaves]
        edge, below = _kth_of(np.concatenate(each), k)
        return edge, below, [int(np.count_nonzero(keys == edge)) for keys in each]
    sample = np.sort(_sample(leaves, total))
    low, high = (int(bound) for bound in (np.iinfo(sample.dtype).min, np.iinfo(sample.dtype).max))
    before, up_to = 0, total  # keys below `low`, and up to `high`
    while True:
        first, last = _bracket(sample, low, high, (k - before) / (up_to - before), up_to - before)
        found = [leaf.count(first, last) for leaf in leaves]
        below, inside = sum(of_leaf[0] for of_leaf in found), sum(of_leaf[1] for of_leaf in found)
        if below >= k:
            high, up_to = first - 1, below
        elif below + inside < k:
            low, before = last + 1, below + inside
        elif first == last:
            return first, below, [of_leaf[1] for of_leaf in found]
        else:
            each = [
                np.concatenate([leaf.keys([]), *of_leaf[2]])
                for leaf, of_leaf in zip(leaves, found, strict=True)
            ]
            edge, less = _kth_of(np.concatenate(each), k - below)
            return edge, below + less, [int(np.count_nonzero(keys == edge)) for keys in each]


def _kth_of(keys: np.ndarray, k: int) -> tuple[int, int]:
    edge = np.partition(keys, k - 1)[k - 1]
    return int(edge), int(np.count_nonzero(keys < edge))


def _sample(leaves: Sequence[_Flat], total: int) -> np.ndarray:
    """Keys drawn at random, one from each of many equal stretches; always the same ones."""
    number = min(_SAMPLE, -(-total // 64))
    places = (np.arange(number) + np.random.default_rng(0).random(number)) * (total / number)
    places = np.minimum(places.astype(np.int64), total - 1)
    sizes = [leaf.scores.size for leaf in leaves]
    starts = np.cumsum([0, *sizes])
    cuts = np.searchsorted(places, starts)
    found = [
        leaf.keys(places[a:b] - s) for leaf, s, a, b in zip(leaves, starts, cuts, cuts[1:], strict=False)
    ]
    return np.concatenate(found)


def _bracket(sample: np.ndarray, low: int, high: int, wanted: float, entries: int) -> tuple[int, int]:
    """Two keys in [low, high] that probably enclose the quantile `wanted` of the entries there, and few entries."""
    if entries <= _SMALL:
        return low, high
    inside = sample[np.searchsorted(sample, low) : np.searchsorted(sample, high, side="right")]
    if not inside.size:
        middle = (low + high) // 2
        return middle, middle
    margin = _DEVIATIONS * np.sqrt(inside.size * wanted * (1 - wanted)) + 1
    first, last = wanted * inside.size - margin, wanted * inside.size + margin
    a = int(inside[int(first)]) if first > 0 else low
    b = int(inside[int(last)]) if last < inside.size else high
    # One value that many entries have is looked at by itself: they need not be taken out.
    for tied in (int(inside[min(int(wanted * inside.size), inside.size - 1)]), a, b):
        if np.searchsorted(inside, tied, side="right") - np.searchsorted(inside, tied) > 2 * margin:
            return tied, tied
    return a, b
