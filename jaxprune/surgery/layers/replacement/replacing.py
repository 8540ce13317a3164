"""Linear maps, fitted from calibration batches, in place of the layers that a plan removes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree
from jaxprune.surgery.layers.branches import Branches
from jaxprune.surgery.layers.bypass import bypassed
from jaxprune.surgery.layers.evaluation import Bypassed, Tapped, run
from jaxprune.surgery.layers.finding import find_branches
from jaxprune.surgery.layers.layer_plan import LayerPlan
from jaxprune.surgery.layers.replacement.folding import fold
from jaxprune.surgery.layers.replacement.moments import Sums, fitted, sums
from jaxprune.surgery.layers.replacement.runs import Reduced, Run, runs_of
from jaxprune.surgery.layers.replacement.tails import Tail, tail_of
from jaxprune.tables import table_text

_NO_TAIL = "nothing that is added before it ends in a weight of its own"
_IN_A_SCAN = "it is a step of a scan, or lies inside one, where no map is fitted"
_ZERO_SCALE = "a scale after the weight has zeros"


class Replaced(NamedTuple):
    """Removed layers, and the map that stands in for them.

    removed: their names; path: the parameter that the map is folded into, "" if none takes it; before, after: the
    error of the stream after them, relative to its norm, without the map and with it; reason: why there is no map.
    """

    removed: tuple[str, ...]
    path: str
    before: float
    after: float
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Replacement:
    """Parameters into which maps are folded; printing it shows a table.

    Attributes:
      params: the full parameters, for `plan.shrink`.
      runs: what was removed together, and the map that stands in for it.
    """

    params: PyTree = field(repr=False)
    runs: tuple[Replaced, ...]

    def __str__(self) -> str:
        rows = [
            (", ".join(r.removed), r.path or r.reason, f"{r.before:.4f}", f"{r.after:.4f}") for r in self.runs
        ]
        return table_text(("removed", "folded into", "error", "with the map"), rows)

    __repr__ = __str__


def replace_layers(
    branches: Branches,
    plan: LayerPlan,
    params: PyTree,
    batches: Iterable[Any],
    *,
    damping: float = 0.01,
    normalize: bool = True,
    sequential: bool = True,
) -> Replacement:
    r"""Fits a linear map in place of each run of removed layers, and folds it into the weight before it.

    A run is what the plan removes between two places at which a kept layer reads the stream. The stream before
    it is Y + M, where M is what the last kept layer adds; L is the stream after it in the full model. The map is
    $T = \arg\min \|Y + M T - L\|^2 + \text{damping} \sum_i \|m_i\|^2 \|T_i - e_i\|^2$, so that much damping leaves
    plain removal. M ends in a product by a weight W, which becomes W T: the small model costs nothing more. Scales
    between the two are accounted for; where a bias lies between, a constant is fitted too. Where M ends in a norm
    instead, T is diagonal and is folded into the norm's scale and bias.

    Args:
      branches: what `find_branches` found.
      plan: the layers to remove.
      params: the parameters that were analysed, as arrays.
      batches: batches of inputs, each a tuple of inputs or one input; they are listed.
      damping: the penalty.
      normalize: whether each row of the stream (a token) is divided by the norm of its L, so that a few of large
        norm do not determine the map. The norms that read the stream divide so too.
      sequential: whether Y and M are those of the small model with the maps before it, so that each map also
        compensates for the errors of those. It takes a pass over the batches for each run. If False, all maps are
        fitted in one pass over the full model, each as if its run was the only one.

    Returns:
      The full parameters with the maps folded in, for `plan.shrink`, and a table of the runs. Runs that no weight
      takes a map for are removed as they are, and the table tells why.

    Raises:
      ValueError: there is no batch, no run has a weight that takes a map, `damping` is negative, a result is not
        finite, or `plan` or `params` is not one of these branches.
      TypeError: `params` is traced or abstract.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"f": jnp.eye(2), "g": 3 * jnp.eye(2), "head": jnp.ones((2, 1))}
      >>> def fn(p, x):
      ...     x = 0 * x + x @ p["f"]
      ...     return (x + x @ p["g"]) @ p["head"]
      >>> x = jnp.array([[1.0, 2.0], [2.0, 1.0]])
      >>> branches = jp.find_branches(fn, params, x)
      >>> plan = jp.plan_layers(branches, params, number=1, exclude="f")
      >>> replaced = jp.surgery.replace_layers(branches, plan, params, [x], damping=0.0)
      >>> replaced.params["f"].round(3)
      Array([[4., 0.],
             [0., 4.]], dtype=float32)

    References:
      Shopkhoev et al., ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization,
      2025, arXiv:2505.02819 (maps of whole blocks of one architecture, without normalization and in one pass).
    """
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    _check(branches, plan, params, batches, damping)
    fits = _Fits(branches, plan, damping, normalize)
    leaves, treedef = jax.tree.flatten(params)
    arrays = [x for x in leaves if is_array_leaf(x)]
    new, reports = (
        fits.sequential(params, arrays, batches) if sequential else fits.at_once(params, arrays, batches)
    )
    of_runs = {name for report in reports for name in report.removed}
    reports += [Replaced((n,), "", np.nan, np.nan, _IN_A_SCAN) for n in plan.removed if n not in of_runs]
    if not any(report.path for report in reports):
        reasons = "; ".join(f"{', '.join(r.removed)}: {r.reason}" for r in reports)
        raise ValueError(f"no removed layer has a weight before it that takes a linear map ({reasons}).")
    given = iter(new)
    full = [next(given) if is_array_leaf(x) else x for x in leaves]
    return Replacement(jax.tree.unflatten(treedef, full), tuple(reports))


class _Place(NamedTuple):
    """A run, and the summand and its tail that take its map; None where there is none."""

    run: Run
    value: int
    sign: int
    tail: Tail | None


class _Model(NamedTuple):
    """The function for inputs of one signature, full and without the branches."""

    branches: Branches
    places: list[_Place]
    mode: Bypassed


class _Fits:
    """The maps of a plan."""

    def __init__(self, branches: Branches, plan: LayerPlan, damping: float, normalize: bool):
        self.branches, self.plan, self.damping, self.normalize = branches, plan, damping, normalize
        self.models: dict[Any, _Model] = {}
        self.compiled: dict[Any, Callable] = {}

    def sequential(
        self, params: PyTree, arrays: list[Any], batches: list[Any]
    ) -> tuple[list[Any], list[Replaced]]:
        """Maps one after the other, each on what those before it give."""
        new, reports = list(arrays), []
        for index in range(len(self._model(params, batches[0]).places)):
            (total,) = self._sums(params, [index], arrays, new, batches)
            new, report = self._folded(params, batches[0], index, total, new)
            reports.append(report)
        return new, reports

    def at_once(
        self, params: PyTree, arrays: list[Any], batches: list[Any]
    ) -> tuple[list[Any], list[Replaced]]:
        """Maps of the full model, from one pass."""
        new, reports = list(arrays), []
        indices = list(range(len(self._model(params, batches[0]).places)))
        for index, total in zip(indices, self._sums(params, indices, arrays, None, batches), strict=True):
            new, report = self._folded(params, batches[0], index, total, new)
            reports.append(report)
        return new, reports

    def _folded(
        self, params: PyTree, batch: Any, index: int, of: Sums | None, arrays: list[Any]
    ) -> tuple[list[Any], Replaced]:
        model = self._model(params, batch)
        run, _, sign, tail = model.places[index]
        if tail is None or of is None:
            return arrays, Replaced(run.removed, "", np.nan, np.nan, _NO_TAIL)
        if not all(np.isfinite(x).all() for x in of):
            raise ValueError(f"the stream at {', '.join(run.removed)} is not finite on these batches.")
        fit = fitted(of, self.damping, tail.takes_constant, tail.weight is None)
        new = fold(model.branches.graph, tail, arrays, fit.linear, sign * fit.constant)
        if new is None:
            return arrays, Replaced(run.removed, "", fit.before, fit.before, _ZERO_SCALE)
        path = model.branches.graph.traced.paths[tail.leaf]
        return new, Replaced(run.removed, path, fit.before, fit.after)

    def _sums(
        self, params: PyTree, indices: list[int], full: list[Any], small: list[Any] | None, batches: list[Any]
    ) -> list[Sums | None]:
        """The sums over all batches; `small` has the arrays of the small model, or None for the full one's."""
        totals: list[Sums | None] = [None] * len(indices)
        for batch in batches:
            model = self._model(params, batch)
            if all(model.places[index].tail is None for index in indices):
                continue
            found = self._values(params, batch, indices, small is None)(full, small, batch)
            for at, index in enumerate(indices):
                place = model.places[index]
                if place.tail is None:
                    continue
                of = sums(
                    *found[at],
                    axis=place.tail.axis,
                    sign=place.sign,
                    diagonal=place.tail.weight is None,
                    normalize=self.normalize,
                )
                new = Sums(*(np.asarray(x, np.float64) for x in of))
                before = totals[at]
                totals[at] = new if before is None else before.plus(new)
        return totals

    def _values(self, params: PyTree, batch: Any, indices: list[int], at_once: bool) -> Callable:
        """Compiled function (full arrays, small arrays, batch) -> (M, Y + M, L) for each run."""
        key = (_signature(batch), tuple(indices))
        if key not in self.compiled:
            model = self._model(params, batch)

            def values(full: list[Any], small: list[Any] | None, batch: Any) -> list[Any]:
                return _values(model, indices, full, small, batch)

            self.compiled[key] = jax.jit(values)
        return self.compiled[key]

    def _model(self, params: PyTree, batch: Any) -> _Model:
        key = _signature(batch)
        if key not in self.models:
            branches = find_branches(self.branches.fn, params, *batch, plain=True)
            mode = bypassed(branches, self.plan.removed, self.plan.gone)
            reduced = Reduced(branches, self.plan.removed)
            places = [_place(reduced, run) for run in runs_of(branches, self.plan.removed)]
            self.models[key] = _Model(branches, places, mode)
        return self.models[key]


def _place(reduced: Reduced, run: Run) -> _Place:
    """The last summand of a run whose tail takes a map, one with a weight first."""
    found = [(s.value, s.sign, tail_of(reduced.graph, s.value, reduced.count)) for s in run.summands]
    takes = sorted(
        (tail.weight is not None, value, sign, tail)
        for value, sign, tail in found
        if tail is not None and reduced.graph.avals[value].shape == reduced.graph.avals[run.end].shape
    )
    if not takes:
        return _Place(run, -1, 1, None)
    _, value, sign, tail = takes[-1]
    return _Place(run, value, sign, tail)


def _values(
    model: _Model, indices: Sequence[int], full: list[Any], small: list[Any] | None, batch: Any
) -> list[Any]:
    graph = model.branches.graph
    places = [model.places[index] for index in indices]
    wanted = {p.run.end for p in places} | {s.value for p in places for s in p.run.summands}
    at = {graph.nodes[graph.maker[v]].place for v in wanted if v in graph.maker}

    def noted(arrays: list[Any], mode: Bypassed) -> Callable[[int], Any]:
        tapped = Tapped(mode, at)
        run(graph.traced, arrays, batch, tapped)

        def value(number: int) -> Any:
            if number not in graph.maker:
                return [*graph.traced.consts, *arrays, *_arrays_of(batch)][number]
            node = graph.nodes[graph.maker[number]]
            return tapped.noted[node.place][node.outs.index(number)]

        return value

    of_full = noted(full, Bypassed({}, {}, frozenset()))
    of_small = of_full if small is None else noted(small, model.mode)
    found = []
    for place in places:
        if place.tail is None:
            found.append(())
            continue
        if small is None:
            here = sum(s.sign * of_full(s.value).astype(np.float32) for s in place.run.summands)
        else:
            here = of_small(place.run.end)
        found.append((of_small(place.value), here, of_full(place.run.end)))
    return found


def _arrays_of(batch: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(batch) if is_array_leaf(x)]


def _signature(batch: Any) -> Any:
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, tuple((np.shape(x), jax.numpy.result_type(x)) for x in leaves if is_array_leaf(x))


def _check(branches: Branches, plan: LayerPlan, params: PyTree, batches: list[Any], damping: float) -> None:
    if not isinstance(plan, LayerPlan):
        raise TypeError(f"`plan` must be a plan of `plan_layers`, got {type(plan).__name__}.")
    if not damping >= 0:
        raise ValueError(f"`damping` must not be negative, got {damping!r}.")
    branches.check_arrays(params, "replace_layers")
    plan.check(params)
    if not batches:
        raise ValueError("`batches` is empty: pass at least one batch of inputs.")
    if not plan.removed:
        raise ValueError("`plan` removes no layer, so there is nothing to replace.")
