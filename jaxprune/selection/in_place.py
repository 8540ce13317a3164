"""The k smallest scores of leaves that are left in place: no copy, whatever their size and their sharding."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection import counts
from jaxprune.selection.counts import Count
from jaxprune.selection.keys import key_dtype, order_keys, positions, threshold_key
from jaxprune.selection.search import count, search

_NEVER = 2**31 - 1  # above every index


def keep_in_place(
    scores: list[jax.Array], pruned: list[jax.Array | None], k: Count, *, partitioned: bool
) -> list[jax.Array]:
    """Masks that keep all but the `k` smallest scores of all leaves together; an empty list if there are no leaves.

    Args:
      scores, pruned: as for `select`.
      k: a scalar count.
      partitioned: whether the leaves may be spread over devices. Only sums of counts are sent between devices.

    Returns:
      bool arrays of the shapes and shardings of the leaves, True = keep.
    """
    if not scores:
        return []
    dtype = key_dtype(scores)
    sizes = counts.stack([Count.of(score.size) for score in scores])
    k = counts.minimum(k, Count.of(sum(score.size for score in scores)))

    def below(probes: jax.Array) -> Count:
        # Without the barrier XLA computes the keys before the loop: as much memory again as the scores.
        held, probes = lax.optimization_barrier((scores, probes))
        thresholds = list(threshold_key(probes, dtype))
        parts = []
        for score, done in zip(held, pruned, strict=True):
            keys = order_keys(score, done, dtype)
            parts.append(count([keys < threshold for threshold in thresholds], partitioned=partitioned))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *parts)

    threshold, missing, tied = search(below, positions(dtype), k, sizes)
    edge = threshold_key(threshold, dtype)
    keys_of = functools.partial(order_keys, dtype=dtype)
    cuts = _cuts(keys_of, scores, pruned, edge, missing, tied, partitioned)
    keeps = []
    for leaf, (score, done) in enumerate(zip(scores, pruned, strict=True)):
        keys = keys_of(score, done)
        gone, at_edge = keys < edge, keys == edge
        for axes, cut in zip(_digits(score.shape), cuts, strict=False):
            index = _index(score.shape, axes)
            gone |= at_edge & (index < cut[leaf])
            at_edge &= index == cut[leaf]
        keeps.append(~gone if done is None else ~(gone | done))
    return keeps


def _cuts(
    keys_of, scores, pruned, edge: jax.Array, k: Count, tied: Count, partitioned: bool
) -> list[jax.Array]:
    """Where the first `k` ties end: for each digit of an index and each leaf, a cut below which ties are pruned.

    There is one leaf such that all ties of earlier leaves are pruned and all ties of later leaves are kept. Within
    that leaf a search over the index finds the k-th tie; it makes no pass if all ties of each leaf have the same
    fate. An index beyond 2^31 is a number of several digits, which are searched one after the other.
    """
    leaves = len(scores)
    up_to = counts.where(np.tri(leaves, dtype=bool), jax.tree.map(lambda part: part[None], tied), Count.of(0))
    up_to = jax.vmap(counts.total)(up_to)
    split = jnp.sum(counts.less_equal(up_to, k), dtype=jnp.int32)
    split = jnp.minimum(split, leaves - 1)
    size = jax.tree.map(lambda part: part[split], tied)
    k = counts.subtract(k, counts.subtract(jax.tree.map(lambda part: part[split], up_to), size))

    cuts: list[jax.Array] = []
    for digit in range(max(len(_digits(score.shape)) for score in scores)):

        def ties_below(operands, leaf: int, digit=digit) -> Count:
            score, done, probes = operands[0][leaf], pruned[leaf], operands[1]
            axes = _digits(score.shape)
            if digit >= len(axes):
                return counts.from_uint32(jnp.zeros(len(probes), jnp.uint32))
            at_edge = keys_of(score, done) == edge
            for earlier, cut in zip(axes, cuts, strict=False):
                at_edge &= _index(score.shape, earlier) == cut[leaf]
            index = jnp.where(at_edge, _index(score.shape, axes[digit]), _NEVER)
            return count([index < probe for probe in probes], partitioned=partitioned)

        def below(probes: jax.Array, ties_below=ties_below) -> Count:
            operands = lax.optimization_barrier((scores, list(probes.astype(jnp.int32))))
            branches = [functools.partial(ties_below, leaf=leaf) for leaf in range(leaves)]
            found = lax.switch(split, branches, operands)
            return jax.tree.map(lambda part: part[:, None], found)

        lengths = [
            math.prod(s.shape[axis] for axes in _digits(s.shape)[digit : digit + 1] for axis in axes)
            for s in scores
        ]
        cut, k, size = search(below, max(lengths), k, jax.tree.map(lambda part: part[None], size))
        size = jax.tree.map(lambda part: part[0], size)
        whole = jnp.where(jnp.arange(leaves) < split, _NEVER, 0)
        cuts.append(jnp.where(jnp.arange(leaves) == split, cut.astype(jnp.int32), whole))
    return cuts


def _digits(shape: tuple[int, ...], base: int = 1 << 31) -> list[list[int]]:
    """Consecutive axes in groups with fewer than `base` entries: one group, except for the largest arrays."""
    groups, product = [[]], 1
    for axis, length in enumerate(shape):
        if product * length >= base:
            groups.append([])
            product = 1
        groups[-1].append(axis)
        product *= length
    return groups


def _index(shape: tuple[int, ...], axes: Sequence[int]) -> jax.Array:
    """Row-major index of each entry along the axes, from iotas, which each device computes for its own shards."""
    index, stride = jnp.zeros(shape, jnp.int32), 1
    for axis in reversed(axes):
        index += lax.broadcasted_iota(jnp.int32, shape, axis) * stride
        stride *= shape[axis]
    return index
