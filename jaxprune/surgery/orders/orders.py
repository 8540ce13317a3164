"""Orders of units as a record: applied to any tree like the parameters, and undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.inference.axes import Atom, Axes, size_of
from jaxprune.surgery.orders.axis_orders import AxisOrders, axis_order, reorder_leaf
from jaxprune.surgery.orders.optimizer import reorder_opt_state
from jaxprune.tables import Row, folded, table_text, times
from jaxprune.weight_names import is_statistic


class Retained(NamedTuple):
    """The share of all scores that an N:M pattern keeps in the weights that sum over a group's units."""

    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Orders:
    """The order of the units of groups; made by `find_orders` or `unit_orders`, applied by `jp.permute`.

    Printing it shows a table of the groups that are reordered, and why others are not.

    Attributes:
      units: group name -> array of shape (group.size,): unit i becomes what unit `units[name][i]` was.
      retained: group name -> the shares of the scores that the pattern keeps `before` and `after`.
      fixed: group name -> why it keeps its order.
      shapes: path -> shape of the parameter.
      axes: path -> for each axis where its entries come from, or None for an axis that keeps its order.
    """

    units: Mapping[str, np.ndarray]
    retained: Mapping[str, Retained] = field(repr=False)
    fixed: Mapping[str, str] = field(repr=False)
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    axes: Mapping[str, AxisOrders] = field(repr=False)

    def apply(self, tree: PyTree) -> PyTree:
        """Reorders a tree like the parameters: values, gradients, averages, masks or scores.

        Args:
          tree: tree with the paths and shapes of the parameters. Arrays may also have axes of size 1 that
            broadcast, and leaves may be scalars, as in masks. Statistics (`batch_stats`) may be missing.

        Returns:
          The tree in the new order. It computes the same function.

        Raises:
          ValueError: if a path or a shape differs from the parameters.
        """
        paths, leaves, treedef = flatten_with_paths(tree)
        arrays = {path for path, leaf in zip(paths, leaves, strict=True) if is_array_leaf(leaf)}
        touched = [path for path, axes in self.axes.items() if any(order is not None for order in axes)]
        missing = [path for path in touched if path not in set(paths) and not is_statistic(path)]
        extra = sorted(arrays - self.shapes.keys())
        if missing or extra:
            which = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r} as well"
            raise ValueError(
                f"`params` is not the tree that the orders were made for: it {which}. Pass a tree with the paths of "
                "the parameters; `orders.permute_opt_state` takes an optimizer state."
            )
        new = [
            reorder_leaf(path, leaf, self.shapes[path], self.axes[path]) if path in arrays else leaf
            for path, leaf in zip(paths, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, new)

    def permute_opt_state(self, opt_state: PyTree) -> PyTree:
        """Reorders an optimizer state.

        Args:
          opt_state: the state of any optax optimizer of the parameters, as `jp.Plan.shrink_opt_state` takes it.

        Returns:
          The state for the parameters in the new order.

        Raises:
          ValueError: if an array belongs to a parameter by its path but its shape does not fit the parameter; if the
            state has GaLore's moments of a parameter that is reordered, since their entries belong to no weight.
        """
        return reorder_opt_state(opt_state, self.shapes, self.axes)

    def inverse(self) -> Orders:
        """The orders that undo these."""
        units = {name: np.argsort(order) for name, order in self.units.items()}
        axes = {
            path: tuple(None if order is None else np.argsort(order) for order in of_leaf)
            for path, of_leaf in self.axes.items()
        }
        retained = {name: Retained(r.after, r.before) for name, r in self.retained.items()}
        return Orders(units, retained, self.fixed, self.shapes, axes)

    def __str__(self) -> str:
        rows = []
        for name, order in self.units.items():
            shares = [f"{share:.1%}" for share in self.retained.get(name, ())] or ["", ""]
            moved = int((order != np.arange(len(order))).sum())
            rows.append(Row((name,), (str(len(order)), str(moved), *shares)))
        cells = [(times(row.paths[0], count), *row.cells) for row, count in folded(rows)]
        columns = ("group", "units", "moved", "kept before", "after")
        text = table_text(columns, cells, numbers=columns[1:])
        if not self.fixed:
            return text
        fixed = folded(Row((name,), (reason,)) for name, reason in self.fixed.items())
        reasons = [(times(row.paths[0], count), *row.cells) for row, count in fixed]
        return f"{text}\n\n{table_text(('keeps its order', 'because'), reasons)}"

    __repr__ = __str__


def orders_of(
    units: Mapping[str, np.ndarray],
    atoms: Mapping[str, Atom],
    axes: Mapping[str, Axes],
    retained: Mapping[str, Retained],
    fixed: Mapping[str, str],
) -> Orders:
    """The record for these orders of the units of groups."""
    by_atom = {atoms[name]: np.asarray(order) for name, order in units.items()}
    shapes = {path: tuple(size_of(axis) for axis in of_leaf) for path, of_leaf in axes.items()}
    of_axes: dict[str, Any] = {
        path: tuple(axis_order(axis, by_atom) for axis in of_leaf) for path, of_leaf in axes.items()
    }
    return Orders(dict(units), dict(retained), dict(fixed), shapes, of_axes)
