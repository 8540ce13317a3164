"""The k smallest scores of a set of leaves, exactly, by counting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.selection import counts
from jaxprune.selection.counts import Count
from jaxprune.selection.keys import key_dtype, largest_key, order_keys

_PROBES = 7


def select(
    scores: Sequence[jax.Array], k, *, pruned: Sequence[jax.Array | None] | None = None
) -> list[jax.Array]:
    """Keep all but the `k` smallest scores over all leaves together; ties go by leaf order, then flat index."""
    leaves = [jnp.asarray(score) for score in scores]
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize > 4:
            raise TypeError(f"`scores` must be float32, bfloat16 or float16, got {leaf.dtype}.")
    before = [None] * len(leaves) if pruned is None else list(pruned)
    if len(before) != len(leaves):
        raise ValueError(f"`pruned` must have one entry for each of the {len(leaves)} leaves, got {len(before)}.")
    for leaf, done in zip(leaves, before, strict=True):
        if done is not None and done.shape != leaf.shape:
            raise ValueError(f"`pruned` must have the shape of its scores, {leaf.shape}, got {done.shape}.")
    size = sum(leaf.size for leaf in leaves)
    if isinstance(k, int) and k > size:
        raise ValueError(f"`k` must be at most the number of scores, {size}, got {k}.")
    k = counts.minimum(counts.as_count(k), Count.of(size))
    return _select(leaves, k, before)


@jax.jit
def _select(scores: list[jax.Array], k: Count, pruned: list[jax.Array | None]) -> list[jax.Array]:
    dtype = key_dtype(scores)
    size = Count.of(sum(score.size for score in scores))

    def keys_of(leaf: int) -> jax.Array:
        return order_keys(scores[leaf], pruned[leaf], dtype).astype(jnp.uint32)

    def below(threshold: jax.Array) -> Count:
        result = Count.of(0)
        for leaf in range(len(scores)):
            result = counts.add(result, _count(keys_of(leaf) < threshold))
        return result

    threshold, left = _search(below, jnp.uint32(largest_key(dtype) + 1), k, size)
    keeps = []
    for leaf, score in enumerate(scores):
        keys = keys_of(leaf)
        tied = keys == threshold
        n_tied = counts.where(counts.equal(left, Count.of(0)), Count.of(0), _count(tied))
        here = counts.minimum(left, n_tied)
        left = counts.subtract(left, here)
        index = _flat_index(score.shape)
        cut, _ = _search(lambda i, tied=tied, index=index: _count(tied & (index < i)), jnp.uint32(score.size), here, n_tied)
        gone = (keys < threshold) | (tied & (index < cut))
        if pruned[leaf] is not None:
            gone |= pruned[leaf]
        keeps.append(~gone)
    return keeps


def _search(below: Callable[[jax.Array], Count], high: jax.Array, k: Count, size: Count):
    """The largest t in [0, high] that `below(t) <= k` allows to find, and k - below(t).

    `below` counts the entries smaller than t: it rises from 0 at t = 0 to `size` at `high`, and k <= size.
    """

    def cond(state):
        low, high, count_low, count_high = state
        return (high - low > 1) & ~counts.equal(count_low, k) & ~counts.equal(count_high, k)

    def body(state):
        low, high, count_low, count_high = state
        middle = low + (high - low) // 2
        count = below(middle)
        under = counts.less_equal(count, k)
        return (
            jnp.where(under, middle, low),
            jnp.where(under, high, middle),
            counts.where(under, count, count_low),
            counts.where(under, count_high, count),
        )

    zero = jnp.zeros((), jnp.uint32)
    low, high, count_low, count_high = lax.while_loop(cond, body, (zero, high, Count(zero, zero), size))
    exact = counts.equal(count_high, k) & ~counts.equal(count_low, k)
    return jnp.where(exact, high, low), counts.where(exact, Count.of(0), counts.subtract(k, count_low))


def _count(chosen: jax.Array) -> Count:
    if chosen.size < 1 << 32:
        return Count(jnp.zeros((), jnp.uint32), jnp.sum(chosen, dtype=jnp.uint32))
    raise NotImplementedError


def _flat_index(shape: tuple[int, ...]) -> jax.Array:
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        index += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(math.prod(shape[axis + 1 :]))
    return index
