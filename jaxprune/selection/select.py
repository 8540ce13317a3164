"""The k smallest scores of a set of leaves, exactly, by counting."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.selection import counts
from jaxprune.selection.counts import Count
from jaxprune.selection.keys import key_dtype, order_keys, positions, threshold_key
from jaxprune.selection.search import count, search


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
    return _select(leaves, k, before, partitioned=_partitioned(leaves))


def _partitioned(leaves: Sequence[jax.Array]) -> bool:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return jax.device_count() > 1
    return any(len(leaf.sharding.device_set) > 1 for leaf in leaves)


@functools.partial(jax.jit, static_argnames="partitioned")
def _select(
    scores: list[jax.Array], k: Count, pruned: list[jax.Array | None], *, partitioned: bool
) -> list[jax.Array]:
    if not scores:
        return []
    dtype = key_dtype(scores)

    def keys_of(leaf: int) -> jax.Array:
        return order_keys(scores[leaf], pruned[leaf], dtype)

    def below(thresholds: jax.Array) -> Count:
        # Without the barrier XLA computes the keys once before the loop and keeps them: as large as the scores.
        held, thresholds = lax.optimization_barrier((scores, thresholds))
        parts = []
        for leaf in range(len(scores)):
            keys = order_keys(held[leaf], pruned[leaf], dtype)
            parts.append(count([keys < threshold_key(t, dtype) for t in thresholds], partitioned=partitioned))
        return Count(jnp.stack([part.high for part in parts], -1), jnp.stack([part.low for part in parts], -1))

    sizes = counts.stack([Count.of(score.size) for score in scores])
    threshold, missing, tied = search(below, positions(dtype), k, sizes)
    keeps = []
    for leaf in range(len(scores)):
        here = counts.minimum(missing, Count(tied.high[leaf], tied.low[leaf]))
        missing = counts.subtract(missing, here)
        keys = keys_of(leaf)
        edge = threshold_key(threshold, dtype)
        gone = (keys < edge) | _first(lambda keys_of=keys_of, leaf=leaf: keys_of(leaf) == edge, keys.shape, here, Count(tied.high[leaf], tied.low[leaf]), partitioned)
        keeps.append(~gone if pruned[leaf] is None else ~(gone | pruned[leaf]))
    return keeps


def _first(tied: Callable[[], jax.Array], shape: tuple[int, ...], k: Count, size: Count, partitioned: bool) -> jax.Array:
    """The first k of the tied entries, in row-major order."""
    first = jnp.zeros(shape, bool)
    for axes in _digits(shape):
        def below(cuts, tied=tied, axes=axes):
            chosen, index = tied(), _index(shape, axes)
            found = count([chosen & (index < cut.astype(jnp.int32)) for cut in cuts], partitioned=partitioned)
            return Count(found.high[:, None], found.low[:, None])
        whole = Count(size.high[None], size.low[None])
        cut, k, size = search(below, math.prod(shape[axis] for axis in axes), k, whole)
        size = Count(size.high[0], size.low[0])
        index = _index(shape, axes)
        first |= tied() & (index < cut.astype(jnp.int32))
        tied = lambda tied=tied, index=index, cut=cut: tied() & (index == cut.astype(jnp.int32))  # noqa: E731
    return first


def _digits(shape: tuple[int, ...], largest: int = 1 << 31) -> list[list[int]]:
    """Consecutive axes in groups, each of which one int32 can number: one group but for the largest arrays."""
    groups, product = [[]], 1
    for axis, length in enumerate(shape):
        if product * length >= largest:
            groups.append([])
            product = 1
        groups[-1].append(axis)
        product *= length
    return groups


def _index(shape: tuple[int, ...], axes: Sequence[int]) -> jax.Array:
    """Row-major number of each entry along the axes; from iotas, which stay with the shards they describe."""
    index, stride = jnp.zeros(shape, jnp.int32), 1
    for axis in reversed(axes):
        index += lax.broadcasted_iota(jnp.int32, shape, axis) * stride
        stride *= shape[axis]
    return index
