"""Functions at the present size: `compact(fn)` for any function of the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery import ComposedPlan, Plan
from jaxprune.surgery.inference.model import State


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
        if plan is None:
            return fn
        return _with_state(plan, state or state_by_path).compact(fn)

    return compact


def state_by_path(params: PyTree, outputs: PyTree) -> tuple[list[Any], list[Any]]:
    """The parameters whose new values are among the outputs, and these: those that end in their paths."""
    known = dict(zip(*flatten_with_paths(params)[:2], strict=True))
    pairs = []
    for path, out in zip(*flatten_with_paths(outputs)[:2], strict=True):
        names = path.split("/")
        ends = ("/".join(names[i:]).removeprefix("params/") for i in range(len(names)))
        found = next((end for end in ends if end in known), None)
        if found is not None and known[found] is not None:
            pairs.append((known[found], out))
    return [old for old, _ in pairs], [new for _, new in pairs]


def _with_state(plan: Any, state: State) -> Any:
    if isinstance(plan, ComposedPlan):
        return ComposedPlan(_with_state(plan.first, state), _with_state(plan.later, state))
    return dataclasses.replace(plan, state=state) if isinstance(plan, Plan) else plan
