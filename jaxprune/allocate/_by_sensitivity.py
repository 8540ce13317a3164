"""Sparsities from a table of sensitivities, under a budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Literal

import jax
import numpy as np

from jaxprune._sensitivity import Sensitivity
from jaxprune.allocate._exact import known_share, round_to_total, share_of_count
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.selection import count_to_prune


def from_sensitivity(
    table: Sensitivity,
    sparsity: float,
    budget: Literal["params", "flops"] = "params",
    cost: PyTree | None = None,
    *,
    params: PyTree | None = None,
) -> PyTree:
    r"""Per-layer sparsities that raise a bound of the loss least, under a budget of weights or FLOPs.

    Minimises \(\sum_l \sqrt{\Delta_l(s_l)}\), where \(\Delta_l\) is the rise of the loss in the table for layer l.
    Near a minimum the loss is a quadratic form of the change of the weights, so its root is a norm. By the
    triangle inequality the rise with all layers pruned is at most the square of this sum. Between the points of
    the grid each curve is replaced by its lower convex hull, on which it is optimal to take the flattest pieces
    first. Of the last piece only a part is taken, so that the budget is met. Equally flat pieces are taken in
    equal parts.

    Args:
      table: the result of `sensitivity`.
      sparsity: fraction of the budget to remove, in [0, 1).
      budget: "params" counts prunable weights, "flops" the FLOPs of their products.
      cost: for "flops": tree with the FLOPs of each leaf, as from `weight_flops`.
      params: tree whose structure the result takes, for a table that was read from a file: a file holds no
        structure. None for the structure of the tree that was measured.

    Returns:
      Tree like the parameters that were measured, or like `params`, of floats for `make_masks`, 0.0 for leaves that
      are not pruned. For a table that was read from a file, without `params`: the dict path -> sparsity, which
      `make_masks` takes too. Under "params" exactly `round(sparsity * n)` weights are pruned (with units of several
      weights, and under "flops", the count of each layer is rounded).

    Raises:
      ValueError: if the sparsity is outside [0, 1) or more than the grid reaches, the budget is unknown, "flops"
        is given without `cost`, the cost lacks a layer, or `params` has other paths than the table.

    Example:
      >>> import numpy as np
      >>> import jaxprune as jp
      >>> losses = np.array([[1.01, 1.04, 1.5], [1.5, 2.0, 3.0]])
      >>> table = jp.Sensitivity(("wide", "narrow"), (0.5, 0.75, 0.9), losses, 1.0, (300, 100), (300, 100))
      >>> jp.allocate.from_sensitivity(table, 0.5)
      {'narrow': 0.0, 'wide': 0.6666666666666666}

    References:
      Li et al., Pruning Filters for Efficient ConvNets, 2016, arXiv:1608.08710, for the table.
    """
    sparsity = known_share(sparsity)
    costs = _costs(table, budget, cost)
    target = sparsity * sum(costs)
    pieces = [piece for n, c in enumerate(costs) for piece in _hull(table, n, c)]
    reach = sum(width for _, _, width in pieces)
    if target > reach * (1 + 1e-9):
        raise ValueError(
            f"`sparsity` {sparsity} of the {budget} is beyond the table: with every layer at the end of its grid, "
            f"{table.sparsities[-1]:g}, it removes {reach / sum(costs):.4g}. Measure higher sparsities."
        )
    removed = [0.0] * len(costs)
    for _, group in groupby(sorted(pieces), key=lambda piece: piece[0]):
        group = list(group)
        width = sum(w for _, _, w in group)
        part = min(1.0, max(target - sum(removed), 0.0) / width)
        for _, n, w in group:
            removed[n] += part * w
    shares = [r / c if c else 0.0 for r, c in zip(removed, costs, strict=True)]
    wanted = [share * n for share, n in zip(shares, table.units, strict=True)]
    if budget == "params" and table.units == table.weights:
        counts = round_to_total(wanted, table.units, int(count_to_prune(sparsity, sum(table.units))))
    else:
        counts = [min(round(w), n) for w, n in zip(wanted, table.units, strict=True)]
    found = {path: share_of_count(k, n) for path, k, n in zip(table.paths, counts, table.units, strict=True)}
    shares = dict(sorted({**found, **dict.fromkeys(table.others, 0.0)}.items()))
    if params is not None:
        paths, _, treedef = flatten_with_paths(params)
        other = sorted(set(paths) ^ set(shares))
        if other:
            has = "`params`" if other[0] in paths else "the table"
            raise ValueError(f"`params` must have the paths of the table, but only {has} has {other[0]!r}.")
        return jax.tree.unflatten(treedef, [shares[path] for path in paths])
    return shares if table.tree is None else jax.tree.map(shares.__getitem__, table.tree)


def _costs(table: Sensitivity, budget: str, cost: PyTree | None) -> list[float]:
    if budget == "params":
        if cost is not None:
            raise ValueError("`cost` must be given with the budget 'flops' only, got it with 'params'.")
        return [float(n) for n in table.weights]
    if budget != "flops":
        raise ValueError(f"`budget` must be 'params' or 'flops', got {budget!r}.")
    if cost is None:
        raise ValueError(
            "`cost` is needed for the budget 'flops': pass jp.allocate.weight_flops(fn, params, inputs)."
        )
    paths, values, _ = flatten_with_paths(cost)
    by_path = dict(zip(paths, values, strict=True))
    for path in table.paths:
        if path not in by_path:
            raise ValueError(f"`cost` lacks {path!r}, a layer of the table ({len(paths)} leaves).")
    costs = [float(by_path[path]) for path in table.paths]
    if not sum(costs) > 0:
        raise ValueError("`cost` is 0 for every layer of the table: there are no FLOPs to remove.")
    return costs


def _hull(table: Sensitivity, layer: int, cost: float) -> Iterator[tuple[float, int, float]]:
    """(slope, layer, width) of the pieces of the lower convex hull of a layer's curve over the removed cost."""
    if not cost:
        return
    losses = np.where(np.isfinite(table.losses[layer]), table.losses[layer], np.inf)
    # A loss that falls again, or below the dense one, is noise: pruning more does not reduce the loss.
    rises = np.sqrt(np.maximum.accumulate(np.maximum(losses - table.dense, 0)))
    hull = [(0.0, 0.0)]
    for share, rise in zip(table.sparsities, rises, strict=True):
        if not math.isfinite(rise):
            break
        point = (share * cost, float(rise))
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    for a, b in pairwise(hull):
        yield _slope(a, b), layer, b[0] - a[0]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
