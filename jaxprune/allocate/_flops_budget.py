"""A budget of FLOPs instead of weights."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import jax
import numpy as np
from jax.core import Tracer

from jaxprune.allocate._exact import known_share, share_of_count
from jaxprune.params import PyTree, aligned, flatten_with_paths, prunable_leaves
from jaxprune.selection import as_written


def flops(scores: PyTree, sparsity: float, cost: PyTree, where: PyTree | None = None) -> PyTree:
    """Prunes the lowest scores per FLOP until that fraction of the FLOPs of the prunable leaves is removed.

    The cost of a weight is the FLOPs of its leaf over the size of its leaf, so a convolution on a large image is
    pruned before a dense layer of equal scores. Use scores that estimate a change of the loss, such as
    `scores.fisher`: plain magnitude empties the most expensive layers first. (For the same sparsity in each leaf,
    in FLOPs too, use `uniform`.)

    Args:
      scores: pytree of non-negative scores, larger = keep.
      sparsity: fraction of the FLOPs to remove, in [0, 1).
      cost: tree like `scores` with the FLOPs of each leaf, as from `weight_flops`.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(scores)`.

    Returns:
      Tree like `scores` of floats for `make_masks`, 0.0 for leaves that are not pruned. The removed FLOPs reach the
      budget and exceed it by less than those of one weight.

    Raises:
      ValueError: if the sparsity is outside [0, 1), scores are traced or negative, there are no FLOPs, or there
        is nothing to prune.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> scores = {"cheap": jnp.array([[1.0, 2.0]]), "dear": jnp.array([[1.5, 5.0]])}
      >>> jp.allocate.flops(scores, 0.45, {"cheap": 2, "dear": 20})
      {'cheap': 0.0, 'dear': 0.5}
    """
    share = as_written(known_share(sparsity))
    paths, leaves, treedef = flatten_with_paths(scores)
    chosen = prunable_leaves(scores, where)
    costs = aligned(scores, cost, "cost")
    rising, prices = [], []
    for i in chosen:
        values = _known(paths[i], leaves[i])
        price = Fraction(float(costs[i])) / max(values.size, 1)
        prices.append(price)
        # What costs nothing is worth keeping at any score.
        rising.append(np.sort(values) / float(price) if price else np.full(values.size, np.inf))
    whole = sum(price * r.size for price, r in zip(prices, rising, strict=True))
    if not whole:
        raise ValueError("`cost` is 0 for every leaf to prune: there are no FLOPs to remove.")
    counts = _counts(rising, prices, share * whole)
    shares: list[float] = [0.0] * len(leaves)
    for i, k, r in zip(chosen, counts, rising, strict=True):
        shares[i] = share_of_count(k, r.size)
    return jax.tree.unflatten(treedef, shares)


def _counts(rising: list[np.ndarray], prices: list[Fraction], target: Fraction) -> list[int]:
    """Number of entries of each array to take, lowest first over all arrays, until the prices reach the target."""

    def spent(counts: list[int]) -> Fraction | int:
        return sum(price * k for price, k in zip(prices, counts, strict=True))

    def up_to(key: int, side: Literal["left", "right"]) -> list[int]:
        # Bits of non-negative floats, read as integers, are in their order.
        threshold = np.int64(key).view(np.float64)
        return [int(np.searchsorted(r, threshold, side)) for r in rising]

    low, high = -1, int(np.float64(np.inf).view(np.int64)) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if spent(up_to(middle, "right")) >= target else (middle, high)
    counts = up_to(high, "left")
    for i, ties in enumerate(up_to(high, "right")):
        missing = target - spent(counts)
        if ties > counts[i] and missing > 0:
            counts[i] += min(ties - counts[i], math.ceil(missing / prices[i]))
    return counts


def _known(path: str, scores: jax.Array) -> np.ndarray:
    if isinstance(scores, Tracer):
        raise ValueError("`scores` must be known numbers, got traced arrays: call `flops` outside of jit.")
    values = np.asarray(scores).astype(np.float64).ravel()
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError(f"`scores` must be finite and not negative, got others at {path!r}.")
    return values
