"""Sparsities whose rounded counts sum to the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
from jax.core import Tracer

from jaxprune.allocation import check_fraction
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves
from jaxprune.selection import count_to_prune

Shape = tuple[int, ...]


def allocation(
    params: PyTree,
    sparsity: float,
    where: PyTree | None,
    ideal: Callable[[list[int], list[Shape], int], Sequence[float]],
) -> PyTree:
    """A tree of sparsities near the ideal ones of the prunable leaves, for `round(sparsity * n)` weights in total.

    `ideal` maps (sizes, shapes, weights to prune) to a sparsity for each leaf.
    """
    sparsity = known_share(sparsity)
    _, leaves, treedef = flatten_with_paths(params)
    chosen = prunable_leaves(params, where)
    shapes = [tuple(leaves[i].shape) for i in chosen]
    sizes = [math.prod(shape) for shape in shapes]
    total = int(count_to_prune(sparsity, sum(sizes)))
    wanted = [share * n for share, n in zip(ideal(sizes, shapes, total), sizes, strict=True)]
    shares: list[float] = [0.0] * len(leaves)
    for i, k, n in zip(chosen, round_to_total(wanted, sizes, total), sizes, strict=True):
        shares[i] = share_of_count(k, n)
    return jax.tree.unflatten(treedef, shares)


def known_share(sparsity: float) -> float:
    """The sparsity as a Python float; raises unless it is a known number in [0, 1)."""
    check_fraction("sparsity", sparsity)
    if isinstance(sparsity, Tracer):
        raise ValueError(
            "`sparsity` must be a known number for an allocation, got a traced one: allocate outside of jit."
        )
    return float(sparsity)


def round_to_total(wanted: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Integers in [0, size] near the wanted numbers that sum to `total`, by largest remainder.

    >>> round_to_total([1.4, 1.4, 1.2], [2, 2, 2], 4)
    [2, 1, 1]
    """
    if not 0 <= total <= sum(sizes):
        raise ValueError(f"`total` must be in [0, {sum(sizes)}], got {total}.")
    counts = [min(max(math.floor(w), 0), n) for w, n in zip(wanted, sizes, strict=True)]
    left = total - sum(counts)
    step = 1 if left > 0 else -1
    order = sorted(range(len(counts)), key=lambda i: step * (counts[i] - wanted[i]))
    while left:
        for i in order:
            if left and 0 <= counts[i] + step <= sizes[i]:
                counts[i] += step
                left -= step
    return counts


def share_of_count(k: int, n: int) -> float:
    """A sparsity s in [0, 1) for which `round(s * n)` is k."""
    return 0.0 if n == 0 else k / n if k < n else 1 - 0.25 / n
