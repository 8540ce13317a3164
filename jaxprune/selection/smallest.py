"""The k smallest scores of a set of leaves, exactly, by counting."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.selection import counts
from jaxprune.selection.counts import Count
from jaxprune.selection.keys import key_dtype, order_keys, positions, threshold_key
from jaxprune.selection.search import count, search

_NEVER = 2**31 - 1  # above every index


def select(
    scores: Sequence[jax.Array], k: Any, *, pruned: Sequence[jax.Array | None] | None = None
) -> list[jax.Array]:
    r"""Keep all but the `k` smallest scores, over all leaves together, or in each leaf for a list of counts.

    Finds the smallest $t$ with $\#\{i : s_i \le t\} \ge k$ and prunes what lies below it and the first of its
    ties. The search is over the bits of $t$ and looks at the scores through counts only: about ten passes,
    no sort, no copy, no concatenation; for sharded arrays nothing is sent but the sums of these counts.

    Args:
      scores: float32, bfloat16 or float16 arrays of any shapes and signs, larger = keep. Leaves of several
        types are compared as float32. NaN goes first; -0.0 equals 0.0.
      k: how many to prune: an int of any size, a traced integer scalar or a `Count`; or a list of these, one
        for each leaf, which is then compared with itself only. A traced `k` beyond the number of scores means
        all of them, a negative one none.
      pruned: for each leaf None or a bool array of its shape, True = pruned before. These go before all
        others, and stay pruned even if they are more than `k`.

    Returns:
      For each leaf a bool array of its shape and sharding, True = keep. Exactly `k` entries are False. Of
      equal scores the first ones go, by leaf and then by row-major index.

    Raises:
      ValueError: `k` outside [0, number of scores], or `pruned` that does not match the scores.
      TypeError: scores or `k` of another type.

    >>> select([jnp.array([3.0, -1.0, 2.0]), jnp.array([[2.0, 5.0]])], 2)
    [Array([ True, False, False], dtype=bool), Array([[ True,  True]], dtype=bool)]

    References:
      Alabi, Blanchard, Gordon and Steinbach, "Fast k-Selection Algorithms for Graphics Processing Units",
      2012, for selection by counting in place of sorting.
    """
    leaves = [jnp.asarray(score) for score in scores]
    if isinstance(k, list):
        held = [None] * len(leaves) if pruned is None else pruned
        return [select([u], n, pruned=[p])[0] for u, n, p in zip(leaves, k, held, strict=True)]
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize > 4:
            raise TypeError(
                f"`scores` must be float32, bfloat16 or float16, got {leaf.dtype}. Cast them to float32."
            )
    before = [None] * len(leaves) if pruned is None else list(pruned)
    if len(before) != len(leaves):
        raise ValueError(
            f"`pruned` must have an entry for each of the {len(leaves)} leaves, got {len(before)}."
        )
    for leaf, done in zip(leaves, before, strict=True):
        if done is not None and (done.shape != leaf.shape or done.dtype != bool):
            raise ValueError(
                f"`pruned` must be bool of the scores' shape {leaf.shape}, got {done.dtype}{done.shape}."
            )
    size = sum(leaf.size for leaf in leaves)
    if isinstance(k, int | np.integer) and k > size:
        raise ValueError(f"`k` must be at most the number of scores, {size}, got {k}.")
    return _select(leaves, counts.as_count(k), before, partitioned=_partitioned(leaves))


def _partitioned(leaves: Sequence[jax.Array]) -> bool:
    # Under jit the placement is XLA's affair, unless there is but one device.
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
    """Where the first `k` ties end: for each digit of an index and each leaf, the ties below it go.

    The ties of the leaves before one leaf go, those of the leaves after it stay, and within it a search over
    the index finds the k-th; it makes no pass if the ties of each leaf go together. An index beyond 2^31 is a
    number of several digits, searched one after the other.
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
    """Consecutive axes in groups with fewer than `base` entries: one group but for the largest arrays."""
    groups, product = [[]], 1
    for axis, length in enumerate(shape):
        if product * length >= base:
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
