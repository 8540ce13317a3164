"""Optimizer states in a new order of units: arrays that belong to a parameter are reordered as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.opt_state import Owner, flat_arrays, is_projected, owners
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.orders.axis_orders import AxisOrders
from jaxprune.surgery.slicing import take_entries

Shapes = Mapping[str, tuple[int, ...]]
Orders = Mapping[str, AxisOrders]


def reorder_opt_state(opt_state: PyTree, shapes: Shapes, orders: Orders) -> PyTree:
    """Reorders the arrays of an optimizer state that belong to a parameter."""
    paths, leaves, treedef = flatten_with_paths((opt_state,))
    owned = owners(opt_state, list(shapes))
    flat = flat_arrays(opt_state, owned, sum(map(math.prod, shapes.values())))
    low_rank = _low_rank(opt_state)
    new = []
    for i, (path, leaf, owner) in enumerate(zip(paths, leaves, owned, strict=True)):
        if i in flat:
            new.append(take_entries(leaf, {leaf.ndim - 1: _in_a_row(shapes, orders)}))
        elif owner is None or np.shape(leaf) == () or all(order is None for order in orders[owner.path]):
            new.append(leaf)
        else:
            name = path.removeprefix("0/")
            new.append(_reorder_one(name, leaf, owner, shapes[owner.path], orders[owner.path], i in low_rank))
    return jax.tree.unflatten(treedef, new)[0]


def _in_a_row(shapes: Shapes, orders: Orders) -> np.ndarray:
    """Where the entries of all parameters, concatenated in one vector, come from."""
    start, pieces = 0, []
    for path, shape in shapes.items():
        index = np.arange(start, start + math.prod(shape)).reshape(shape)
        for dim, order in enumerate(orders[path]):
            index = index if order is None else np.take(index, order, dim)
        pieces.append(index.ravel())
        start += math.prod(shape)
    return np.concatenate(pieces)


def _low_rank(opt_state: PyTree) -> set[int]:
    """Positions of GaLore's moments of projected gradients, whose entries belong to no single weight."""
    found, start = set(), 0
    for node in jax.tree.leaves(opt_state, is_leaf=is_projected):
        count = len(jax.tree.leaves(node))
        if is_projected(node):
            found |= set(range(start, start + count))
        start += count
    return found


def _reorder_one(
    path: str, leaf: Any, owner: Owner, shape: Sequence[int], orders: AxisOrders, low_rank: bool
) -> Any:
    have, mine = np.shape(leaf), list(zip(shape, orders, strict=True))
    if have == (1,) != tuple(shape):
        return leaf  # Adafactor's place of a moment that it does not use
    if owner.axis is not None:  # SM3: one statistic per entry of an axis, with or without the other axes
        mine = [pair if i == owner.axis else (1, None) for i, pair in enumerate(mine)]
        mine = [mine[owner.axis]] if len(have) == 1 else mine
    elif len(have) == len(shape) - 1 and not low_rank:
        mine = _without_one(path, mine)  # Adafactor's moments lack one of the two largest axes
    extra = len(have) - len(mine)  # a history of updates has axes before the parameter's
    fits = extra >= 0 and all(n in (1, m) for n, (m, _) in zip(have[extra:], mine, strict=True))
    if (low_rank and len(shape) > 1) or not fits:
        raise ValueError(
            f"the optimizer state has an array of shape {have} at {path!r}. It belongs to the parameter "
            f"{owner.path!r} of shape {tuple(shape)}, but it can't be reordered: its entries are not those of the "
            "parameter. Initialize a new state with tx.init(params)."
        )
    chosen = {
        extra + dim: order
        for dim, (n, (_, order)) in enumerate(zip(have[extra:], mine, strict=True))
        if n != 1 and order is not None
    }
    return take_entries(leaf, chosen)


def _without_one(path: str, mine: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The axes of a moment that lacks the largest axis (`v_row`) or the second largest (`v_col`)."""
    second, first = map(int, np.argsort([n for n, _ in mine])[-2:])
    gone = {"v_row": first, "v_col": second}
    name = next((part for part in path.split("/") if part in gone), None)
    if name is None:
        return mine
    return [pair for i, pair in enumerate(mine) if i != gone[name]]
