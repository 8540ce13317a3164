"""N:M selection: the n largest of every m consecutive entries, in linear time and without sorting."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.meshes import is_explicit
from jaxprune.selection.keys import key_dtype, order_keys
from jaxprune.selection.on_host import host_keys, lowered

_PIECE = 1 << 16  # scores looked at together on the host


def nm_keep(scores: jax.Array, n: int, m: int, axis: int, pruned: jax.Array | None = None) -> jax.Array:
    r"""Keep the `n` largest scores of every group of `m` consecutive entries along `axis`.

    An entry is kept if at least $m - n$ entries of its group are pruned before it. This takes $m$ comparisons per
    entry, which XLA fuses into one pass: no sort, and no copy of the scores.

    Args:
      scores: float array; NaN is pruned first.
      n: number of entries to keep of each group, 1 <= n <= m.
      m: length of a group; it must divide the length of `axis`.
      axis: the axis along which groups lie: for N:M sparse matrix products the input axis.
      pruned: bool array of the shape of the scores: entries that are pruned before all others, and never kept.

    Returns:
      bool array of the shape of the scores, True = keep. Of equal scores the lower index is pruned first.

    Raises:
      ValueError: if `n` is outside [1, m], or `m` does not divide the axis (or, on an explicit mesh, its shards).

    >>> nm_keep(jnp.array([1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]), 2, 4, axis=0).astype(int)
    Array([0, 1, 1, 0, 0, 0, 1, 1], dtype=int32)

    References:
      Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", 2021,
      arXiv:2102.04010.
    """
    if not 1 <= n <= m:
        raise ValueError(f"`n` must be in [1, m], got n={n} and m={m}.")
    axis = range(scores.ndim)[axis]
    if scores.shape[axis] % m:
        raise ValueError(f"`m` must divide the length of axis {axis}, got m={m} and shape {scores.shape}.")
    shard = jax.typeof(scores).sharding.shard_shape(scores.shape)[axis] if is_explicit(scores) else 0
    if shard % m:
        raise ValueError(
            f"`m` must divide the shards of axis {axis}, got m={m} and shards of length {shard}."
        )
    if isinstance(scores, np.ndarray):
        return _keep_on_host(scores, n, m, axis, pruned)
    keys = order_keys(scores, pruned, key_dtype([scores]))
    groups = keys.reshape(*keys.shape[:axis], keys.shape[axis] // m, m, *keys.shape[axis + 1 :])
    position = lax.broadcasted_iota(jnp.int32, groups.shape, axis + 1)
    before = jnp.zeros((), jnp.int32)
    for i in range(m):
        other = lax.slice_in_dim(groups, i, i + 1, axis=axis + 1)
        before += ((other < groups) | ((other == groups) & (position > i))).astype(jnp.int32)
    keep = (before >= m - n).reshape(keys.shape)
    return keep if pruned is None else keep & ~pruned


def _keep_on_host(scores: np.ndarray, n: int, m: int, axis: int, pruned: Any) -> Any:
    """`nm_keep` by NumPy, in pieces so small that the keys of one piece fit in the cache."""
    before, after = math.prod(scores.shape[:axis]), math.prod(scores.shape[axis + 1 :])
    shape = (before * scores.shape[axis] // m, m, after)
    dtype, grouped, keep = key_dtype([scores]), scores.reshape(shape), np.empty(shape, bool)
    done = None if pruned is None else pruned.reshape(shape)
    rows = max(1, _PIECE // max(1, m * after))
    for start in range(0, shape[0], rows):
        at = slice(start, start + rows)
        keys = host_keys(grouped[at], dtype)
        if done is not None:
            keys = lowered(keys, done[at])
        smaller = np.zeros(keys.shape, np.int32)
        for i in range(m):
            other = keys[:, i : i + 1]
            smaller[:, :i] += other < keys[:, :i]
            smaller[:, i + 1 :] += other <= keys[:, i + 1 :]
        np.greater_equal(smaller, m - n, out=keep[at])
    keep = keep.reshape(scores.shape)
    return keep if pruned is None else keep & ~pruned
