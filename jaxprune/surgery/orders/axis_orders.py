"""The order of the entries of an axis, given the orders of the units along it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.surgery.inference.axes import Atom, Axis, leaves_of, normal, parts_of, size_of
from jaxprune.surgery.slicing import take_entries

AxisOrders = Sequence[np.ndarray | None]  # for each axis where its entries come from; None leaves it as it is


def axis_order(axis: Axis, orders: Mapping[Atom, np.ndarray]) -> np.ndarray | None:
    """Where each entry of an axis comes from; None if the axis has none of these atoms."""
    return _order(axis, orders) if any(atom in orders for atom in leaves_of(axis)) else None


def _order(axis: Axis, orders: Mapping[Atom, np.ndarray]) -> np.ndarray:
    out = np.zeros(1, np.int64)
    for atom in normal(axis):
        if atom.parts is None:
            of_atom = orders.get(atom)
            index = np.arange(atom.size) if of_atom is None else of_atom
        else:
            start, pieces = 0, []
            for part in parts_of(atom):
                pieces.append(start + _order(part, orders))
                start += size_of(part)
            index = np.concatenate(pieces)
        out = (out[:, None] * atom.size + index).ravel()
    return out


def reorder_leaf(path: str, leaf: Any, shape: Sequence[int], orders: AxisOrders) -> Any:
    """Reorders an array of a parameter's shape; axes of size 1 and scalars broadcast and are left unchanged.

    Raises:
      ValueError: if the array does not broadcast to the parameter.
    """
    have = np.shape(leaf)
    if have == ():
        return leaf
    if len(have) != len(shape) or any(n not in (1, m) for n, m in zip(have, shape, strict=True)):
        raise ValueError(
            f"{path!r} must have shape {tuple(shape)}, as in the tree that the groups were found in, got "
            f"{tuple(have)}."
        )
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    chosen = {
        dim: order
        for dim, (n, order) in enumerate(zip(have, orders, strict=True))
        if n != 1 and order is not None
    }
    return take_entries(leaf, chosen)
