"""The k smallest scores of many leaves, copied side by side so that one small program serves all of them.

A program that treats each leaf separately takes XLA a tenth of a second per leaf to compile. So the leaves are
copied into one array of rows and searched there. The largest leaves are left in place, because of the copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.float_range import widened
from jaxprune.meshes import steady
from jaxprune.selection.hidden import hidden
from jaxprune.selection.keys import order_keys, threshold_key
from jaxprune.selection.search import sums_of

_WIDTH = 1024  # entries of a row: they remain in the nearest cache for all probes of a pass
_PADDING = 2**31 - 1  # above all keys and all places
_PROBES = np.arange(1, 8, dtype=np.uint32)  # a pass settles three bits
_PLACE_BITS = 31


def keep_in_blocks(
    scores: Sequence[jax.Array],
    pruned: Sequence[jax.Array | None],
    k: jax.Array,
    dtype: jnp.dtype,
) -> list[jax.Array]:
    r"""Masks of leaves with fewer than 2^31 entries in total.

    The entries are ordered by key and then by position. The search finds the last cut with at most k entries
    before it, digit by digit from the highest: each pass counts the entries below seven cuts, which determines
    three bits. It ends once exactly k entries lie before the cut of every group.

    Args:
      scores, pruned: as for `select`.
      k: uint32, how many to prune: of shape (1,) from all leaves together, of shape (leaves,) from each of them.
      dtype: the float type in which the scores are compared.

    Returns:
      bool arrays of the shapes of the leaves, True = keep.
    """
    sizes = np.array([score.size for score in scores])
    groups = sizes.reshape(k.size, -1)  # the leaves of each group
    rows = -(-groups.sum(axis=1) // _WIDTH)
    first = np.cumsum(rows) - rows
    owner = np.repeat(np.arange(k.size), rows)
    start = ((np.arange(len(owner)) - first[owner]) * _WIDTH).astype(np.int32)[:, None]
    left = groups.sum(axis=1).astype(np.int32)[owner][:, None] - start
    begins = (first[:, None] * _WIDTH + np.cumsum(groups, axis=1) - groups).reshape(-1)

    flat = _in_rows([as_dtype(score, dtype) for score in scores], k.size)
    known = all_or_none(pruned, scores)
    # Callers have masks, and know what was pruned as their complement: back as masks, they are copied as they are.
    done = None if known is None else ~_in_rows([~mask for mask in known], k.size)
    # The barrier keeps the copy apart from the arithmetic, which would else be compiled once for each leaf.
    flat, done = lax.optimization_barrier((flat, done))
    column = lax.broadcasted_iota(jnp.int32, flat.shape, 1)
    keys = jnp.where(column < left, order_keys(flat, done, dtype), _PADDING)

    def count(table: jax.Array) -> jax.Array:
        own = table[:, owner] if k.size > 1 else table
        key, by_place = own[-2][:, None], own[-1][:, None] > 0
        place = jnp.where(keys == key, start + column, jnp.where(keys < key, -1, _PADDING))
        values = jnp.where(by_place, place, keys)
        below = [(values < probe[:, None]).astype(jnp.uint32) for probe in own[: len(_PROBES)]]
        sums = sums_of(below, [1])
        if k.size == 1:
            return jnp.sum(jnp.stack(sums), axis=1, keepdims=True, dtype=jnp.uint32)
        return jax.ops.segment_sum(jnp.stack(sums, axis=1), owner, k.size, indices_are_sorted=True).T

    bits = 8 * dtype.itemsize
    shifts = [*_shifts(bits), *_shifts(min(_PLACE_BITS, int(groups.sum(axis=1).max(initial=1)).bit_length()))]
    key_passes = len(_shifts(bits))
    k = jnp.minimum(k, groups.sum(axis=1).astype(np.uint32))

    # The state is a number of passes and one array: XLA compiles one program for its renewal instead of four.
    def narrowed(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, (key, place, reached) = state
        shift, by_place = jnp.asarray(shifts, jnp.uint32)[number], number >= key_passes
        low = jnp.where(by_place, place, key)
        probes = low[None] + (_PROBES[:, None] << shift)
        limits = jnp.where(by_place, probes.astype(jnp.int32), threshold_key(probes, dtype))
        edge = threshold_key(key, dtype)
        (table,) = hidden([jnp.concatenate([limits, edge[None], jnp.full_like(edge, by_place)[None]])])
        found = count(table)
        # The highest digit may have fewer bits: what its probes lose there, they don't fit by.
        fits = ((probes - low[None]) >> shift == _PROBES[:, None]) & (found <= k[None])
        digit = jnp.sum(fits, axis=0, dtype=jnp.uint32)
        reached = jnp.max(jnp.where(fits, found, reached[None]), axis=0)
        low += digit << shift
        cut = [jnp.where(by_place, key, low), jnp.where(by_place, low, place), reached]
        return number + 1, jnp.stack(cut)

    def is_open(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (state[0] < len(shifts)) & jnp.any(state[1][2] < k)

    begin = (jnp.zeros((), jnp.int32), jnp.zeros((3, k.size), jnp.uint32))
    _, cut = lax.while_loop(is_open, narrowed, steady(narrowed, begin))
    (cut,) = hidden([cut])
    key, place = threshold_key(cut[0], dtype), cut[1].astype(jnp.int32)
    if k.size > 1:
        key, place = key[owner], place[owner]
    key, place = key[:, None], place[:, None]
    gone = (keys < key) | ((keys == key) & (start + column < place))
    (keep,) = hidden([(~gone if done is None else ~(gone | done)).reshape(-1)])
    parts = parts_of(keep, begins, sizes.tolist())
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def as_dtype(score: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """A score in the dtype in which all are compared: its own or float32."""
    return score if score.dtype == dtype else widened(score)


def all_or_none(pruned: Sequence[jax.Array | None], scores: Sequence[jax.Array]) -> list[jax.Array] | None:
    """One array for each leaf of the entries that were pruned before; None if no leaf has any."""
    if all(mask is None for mask in pruned):
        return None
    return [jnp.zeros(s.shape, bool) if m is None else m for s, m in zip(scores, pruned, strict=True)]


def parts_of(flat: jax.Array, begins: Sequence[int] | np.ndarray, sizes: Sequence[int]) -> list[jax.Array]:
    """Parts of a flat array; parts of equal size share their compiled code."""
    places = hidden([np.int32(begin) for begin in begins])
    return [lax.dynamic_slice(flat, (i,), (n,)) for i, n in zip(places, sizes, strict=True)]


def _in_rows(leaves: Sequence[jax.Array], groups: int) -> jax.Array:
    """The leaves one after the other, each group padded to whole rows."""
    parts, each = [], len(leaves) // groups
    for i in range(groups):
        group = leaves[i * each : (i + 1) * each]
        parts += [leaf.reshape(-1) for leaf in group]
        if size := -sum(leaf.size for leaf in group) % _WIDTH:
            parts.append(jnp.zeros(size, leaves[0].dtype))
    return jnp.concatenate(parts).reshape(-1, _WIDTH)


def _shifts(bits: int) -> list[int]:
    """The first bit of each digit of three bits, the highest digit first."""
    return [3 * i for i in reversed(range(math.ceil(bits / 3)))]
