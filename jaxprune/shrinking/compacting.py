"""Functions at the present size: `compact(fn)` for any function of the parameters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, Protocol

import jax

from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery import ComposedPlan, Plan
from jaxprune.surgery.inference.model import State
from jaxprune.surgery.layers.removed_leaves import without_leaves


class Compact(Protocol):
    """`compact(fn)` is what `fn(params, *inputs)` computes at the present size, for any such function.

    Outputs that have the path of a parameter below their own root (`1/batch_stats/bn/mean` of
    `(logits, {"batch_stats": ...})`) are its new value, and lose the units that it loses. Where outputs are not
    named so, `state` pairs the two as in `jp.find_groups`.
    """

    def __call__(self, fn: Callable, state: State | None = None) -> Callable: ...


def compact_by(plan: Any | None) -> Compact:
    """The `compact` of a plan; None for the full size."""

    def compact(fn: Callable, state: State | None = None) -> Callable:
        return fn if plan is None else _compacted(plan, fn, state or state_by_path)

    return compact


def state_by_path(params: PyTree, outputs: PyTree) -> tuple[list[Any], list[Any]]:
    """The parameters whose new values are among the outputs, and these: those that end in their paths."""
    known = dict(zip(*flatten_with_paths(params)[:2], strict=True))
    found = _parameters_of(outputs, known)
    outs = jax.tree.leaves(outputs)
    return [known[path] for path in found.values()], [outs[i] for i in found]


def _compacted(plan: Any, fn: Callable, state: State) -> Callable:
    if isinstance(plan, ComposedPlan):
        return _compacted(plan.later, _compacted(plan.first, fn, state), state)
    if isinstance(plan, Plan):
        return dataclasses.replace(plan, state=state).compact(fn)
    return plan.compact(_without_outputs(fn, plan.gone))


def _without_outputs(fn: Callable, gone: Collection[str]) -> Callable:
    """The function without the new values of removed parameters, which would need the layer that they belong to."""

    @functools.wraps(fn)
    def rest(params: PyTree, *inputs: Any) -> Any:
        outputs = fn(params, *inputs)
        found = _parameters_of(outputs, gone)
        return without_leaves(outputs, found) if found else outputs

    return rest


def _parameters_of(outputs: PyTree, paths: Collection[str]) -> dict[int, str]:
    """Position of an output -> the path, among some, of the parameter whose new value it is."""
    found = {}
    for i, path in enumerate(flatten_with_paths(outputs)[0]):
        names = path.split("/")
        ends = ("/".join(names[start:]).removeprefix("params/") for start in range(len(names)))
        end = next((end for end in ends if end in paths), None)
        if end is not None:
            found[i] = end
    return found
