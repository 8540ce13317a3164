"""The orders of units that suit an N:M pattern, group by group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxprune.jaxprs.program import flatten
from jaxprune.params import PyTree, aligned, flatten_with_paths, prunable_leaves
from jaxprune.surgery.inference.axes import Atom
from jaxprune.surgery.inference.model import Model
from jaxprune.surgery.orders.axis_orders import axis_order, reorder_leaf
from jaxprune.surgery.orders.fixed_order import fixed_orders
from jaxprune.surgery.orders.orders import Orders, Retained, orders_of
from jaxprune.surgery.orders.search import best_order, kept_sum
from jaxprune.surgery.orders.stripes import Product, Stripes, products_of, stripes_of

_MOST_COLUMNS = 2**14  # that a search looks at; of more, every k-th
_NO_STRIPES = "no weight's pattern depends on it"


class Pattern(NamedTuple):
    """N:M, and the effort of the search."""

    n: int
    m: int
    rounds: int


def found_orders(
    model: Model,
    atoms: Mapping[str, Atom],
    params: PyTree,
    pattern: Pattern,
    scores: PyTree | None,
    where: Any,
    names: Collection[str],
) -> Orders:
    """The orders of the groups `names` in which an N:M pattern keeps much of the scores."""
    matrices = _Scores(model, params, scores, where)
    fixed = fixed_orders(model, {atoms[name] for name in names})
    units, retained, reasons = {}, {}, {}
    for name, atom in atoms.items():
        if name not in names:
            reasons[name] = "it is excluded"
        elif atom in fixed:
            reasons[name] = fixed[atom]
        else:
            order, shares = _order_of(model, atom, pattern, matrices)
            if order is None:
                reasons[name] = _NO_STRIPES
            else:
                units[name], retained[name] = order, shares
    return orders_of(units, atoms, model.axes, retained, reasons)


class _Scores:
    """The scores of the weights that may be pruned, and the products by them."""

    def __init__(self, model: Model, params: PyTree, scores: PyTree | None, where: Any):
        paths, leaves, _ = flatten_with_paths(params)
        chosen = {paths[i] for i in prunable_leaves(params, where)}
        traced = model.traced
        shapes = [tuple(aval.shape) for aval in traced.avals]
        values = dict(
            zip(paths, leaves if scores is None else aligned(params, scores, "scores"), strict=True)
        )
        found = dict(zip(paths, leaves, strict=True))
        for path in chosen:
            if isinstance(values[path], Tracer | jax.ShapeDtypeStruct):
                raise TypeError(
                    f"`{'params' if scores is None else 'scores'}` must be arrays, got {values[path]!r} at {path!r}: "
                    "orders are found outside `jit`. With `orders` jp.permute works inside it."
                )
        for path, shape in zip(traced.paths, shapes, strict=True):
            have = np.shape(found[path]) if path in found else None
            if have != shape:
                raise ValueError(
                    f"`params` must have the shapes that the groups were found with: {shape} at {path!r}, got {have}. "
                    "Call jp.find_groups with these parameters."
                )
        tracked = {i for i, path in enumerate(traced.paths) if path in chosen and 0 not in shapes[i]}
        self._of_magnitude = scores is None
        self._values, self._shapes = values, dict(zip(traced.paths, shapes, strict=True))
        uses = flatten(traced, tracked).uses
        self.products = [p for p in products_of(uses, traced.paths, shapes) if self._has_scores(p.path)]

    def of(self, path: str) -> np.ndarray:
        """The scores of a weight, in float32."""
        value = np.asarray(self._values[path]).astype(np.float32)
        return np.abs(value) if self._of_magnitude else value

    def _has_scores(self, path: str) -> bool:
        """Whether a leaf has scores; a tree of scores has NaN in all of a leaf that it says nothing about."""
        score = self._values[path]
        shape = np.shape(score)
        if shape != self._shapes[path]:
            raise ValueError(
                f"`scores` must have a score for each weight, got shape {shape} at {path!r} of shape "
                f"{self._shapes[path]}. Use a function of jp.scores."
            )
        score = np.asarray(score).astype(np.float32)
        if np.isnan(score).all() and not self._of_magnitude:
            return False
        if not np.isfinite(score).all():
            raise ValueError(
                f"`{'params' if self._of_magnitude else 'scores'}` must be finite, got NaN or infinite values at "
                f"{path!r}."
            )
        return True


def _order_of(
    model: Model, atom: Atom, pattern: Pattern, scores: _Scores
) -> tuple[np.ndarray | None, Retained]:
    n, m, rounds = pattern
    stripes, products = stripes_of(atom, model.axes, scores.products, m)
    if not stripes or len(stripes[0].starts) < 2:
        return None, Retained(0, 0)
    positions = (np.array(stripes[0].starts)[:, None] + np.arange(m)).ravel()
    order = np.arange(atom.size)
    order[positions] = positions[best_order(_rows(stripes, scores), n, m, rounds)]
    # What counts is all columns of all products, also of those whose stripes begin at other units.
    total = before = after = 0.0
    for product in products:
        score = scores.of(product.path)
        orders = [axis_order(axis, {atom: order}) for axis in model.axes[product.path]]
        total += float(product.matrix.of(score).sum(dtype=np.float64))
        before += _kept(product, score, n, m)
        after += _kept(product, reorder_leaf(product.path, score, product.shape, orders), n, m)
    if not after > before:
        order, after = np.arange(atom.size), before
    total = total if total > 0 else 1.0
    return order, Retained(before / total, after / total)


def _rows(stripes: Sequence[Stripes], scores: _Scores) -> np.ndarray:
    """The scores of each unit in stripes, (units, columns)."""
    step = -(-sum(s.columns for s in stripes) // _MOST_COLUMNS)
    parts = [part[:, ::step] for s in stripes for part in s.rows(scores.of(s.product.path))]
    rows = np.concatenate(parts, 1)
    largest = np.abs(rows).max(initial=0)  # sums of the quotients fit float32
    return rows / largest if largest > 0 else rows


def _kept(product: Product, scores: np.ndarray, n: int, m: int) -> float:
    return sum(kept_sum(matrix, n, m) for matrix in product.matrix.of(scores))
