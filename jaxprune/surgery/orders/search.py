"""Which rows stand together: rows are assigned to groups of m so that the n largest of each column keep the most.

Two kinds of moves take turns. An assignment takes one row out of each group and gives all of these rows back at
once, in the best way. A pairing takes groups two by two and splits the 2m rows of each pair in the best way. No move
lowers the sum, so the search ends in an order that no single exchange of two rows improves much.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from scipy.optimize import linear_sum_assignment

_MOST_SPLITS = 40  # of 2m rows into two groups of m: 35 for m = 4, 6435 for m = 8, where assignments must do

_FEW_GROUPS = 32  # with fewer groups a round costs so little that there are more of them


def kept_sum(rows: np.ndarray, n: int, m: int) -> float:
    """Sum of the n largest of every m neighbouring rows, in each column."""
    return float(_kept(rows.reshape(-1, m, rows.shape[1]), n).sum(dtype=np.float64))


def best_order(rows: np.ndarray, n: int, m: int, rounds: int) -> np.ndarray:
    """An order of the rows in which groups of m neighbours keep much.

    Args:
      rows: scores (rows, columns); the number of rows is a multiple of m.
      n, m: the pattern.
      rounds: number of moves of both kinds.

    Returns:
      The order: row i of the result is row `order[i]`. Groups that keep their rows keep their places and the order
      within them.
    """
    count = len(rows) // m
    if count < 2 or not rows.size:
        return np.arange(len(rows))
    rng = np.random.default_rng(0)
    pairs = math.comb(2 * m, m) // 2 <= _MOST_SPLITS
    kept, best = max(
        ((kept_sum(rows[groups.ravel()], n, m), groups) for groups in _starts(rows, m)),
        key=lambda pair: pair[0],
    )
    groups = best
    for _ in range(rounds * (1 + _FEW_GROUPS // count)):
        groups = _assigned(rows, groups, n, rng)
        if pairs:
            groups = _paired(rows, groups, n, rng)
        now = kept_sum(rows[groups.ravel()], n, m)
        if now > kept:
            kept, best = now, groups
        else:
            groups = _shaken(best, rng)
    return _in_place(best)


def _shaken(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The groups after rows of a few of them are exchanged at random, to leave a local optimum."""
    some = rng.permutation(len(groups))[: max(2, len(groups) // 16)]
    groups = groups.copy()
    groups[some] = rng.permutation(groups[some].ravel()).reshape(len(some), -1)
    return groups


def _starts(rows: np.ndarray, m: int) -> list[np.ndarray]:
    """Groups to start from: neighbours, and rows dealt out by their sums, the large ones to different groups."""
    by_sum = np.argsort(-rows.sum(1), kind="stable").reshape(m, -1)
    by_sum[1::2] = by_sum[1::2, ::-1]
    return [np.arange(len(rows)).reshape(-1, m), by_sum.T]


def _kept(groups: np.ndarray, n: int) -> np.ndarray:
    """The sum of the n largest along the second to last axis."""
    m = groups.shape[-2]
    if n == 2 and m == 4:
        a, b, c, d = (groups[..., i, :] for i in range(4))
        high, low = np.maximum(a, b), np.minimum(a, b)
        other, under = np.maximum(c, d), np.minimum(c, d)
        return np.maximum(high, other) + np.maximum(np.minimum(high, other), np.maximum(low, under))
    return np.partition(groups, m - n, axis=-2)[..., m - n :, :].sum(-2)


def _assigned(rows: np.ndarray, groups: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """One row of each group, drawn at random, is assigned anew: the best of all ways to give them back."""
    count, m = groups.shape
    groups = rng.permuted(groups, axis=1)
    out, rest = rows[groups[:, 0]], rows[groups[:, 1:]]
    # With a row x, the n largest sum to the n - 1 largest of the rest plus max(x, the n-th largest of the rest).
    least = np.partition(rest, m - 1 - n, axis=1)[:, m - 1 - n]
    gain = np.empty((count, count), np.float32)
    larger, ones = np.empty_like(out), np.ones(out.shape[1], np.float32)
    for group in range(count):
        np.maximum(out, least[group], out=larger)
        gain[group] = larger @ ones
    _, taken = linear_sum_assignment(gain, maximize=True)
    chosen = groups[:, 0][taken]
    return np.concatenate([chosen[:, None], groups[:, 1:]], 1)


def _paired(rows: np.ndarray, groups: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Each of these pairs of groups is split in the best way."""
    count, m = groups.shape
    order = rng.permutation(count)
    first, second = order[0 : count - 1 : 2], order[1::2]
    both = np.concatenate([groups[first], groups[second]], 1)
    values = rows[both]
    best, split = np.full(len(first), -np.inf), np.zeros(len(first), int)
    splits = _splits(m)
    for i, (left, right) in enumerate(splits):
        kept = _kept(values[:, left], n).sum(-1, dtype=np.float64)
        kept += _kept(values[:, right], n).sum(-1, dtype=np.float64)
        split = np.where(kept > best, i, split)
        best = np.maximum(kept, best)
    groups = groups.copy()
    chosen = splits[split]
    groups[first] = np.take_along_axis(both, chosen[:, 0], 1)
    groups[second] = np.take_along_axis(both, chosen[:, 1], 1)
    return groups


def _splits(m: int) -> np.ndarray:
    """All splits of 2m rows into two groups of m, the present one first."""
    lefts = [(0, *rest) for rest in itertools.combinations(range(1, 2 * m), m - 1)]
    return np.array([(left, [i for i in range(2 * m) if i not in left]) for left in lefts])


def _in_place(groups: np.ndarray) -> np.ndarray:
    """The order of these groups in which as many groups and rows as possible stay where they were."""
    count, m = groups.shape
    groups = np.sort(groups, 1)
    shared = np.zeros((count, count), int)
    np.add.at(shared, (np.arange(count)[:, None], groups // m), 1)
    _, place = linear_sum_assignment(shared, maximize=True)
    order = np.empty((count, m), int)
    order[place] = groups
    for at, members in enumerate(order):
        own = [row for row in members if row // m == at]
        others = iter(row for row in members if row // m != at)
        order[at] = [row if row in own else next(others) for row in range(at * m, at * m + m)]
    return order.ravel()
