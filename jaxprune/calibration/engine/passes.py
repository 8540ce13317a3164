"""What one pass of the batches through a program computes and keeps, from shapes alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax

from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.jax_compat import opened
from jaxprune.jaxprs import as_abstract
from jaxprune.jaxprs.stream import makers, sites
from jaxprune.jaxprs.work import Work, work_of


class Pass(NamedTuple):
    """One pass.

    work: of one batch; kept: the largest number of bytes that activations of one batch take at a site; largest: bytes
    of the operands and results of the largest step; values: number -> shape and dtype; steps: step -> its work.
    """

    work: Work
    kept: int
    largest: int
    values: dict[int, Any]
    steps: dict[int, Work]


def one_pass(model: CalibrationModel, wanted: Sequence[int] = ()) -> Pass:
    """The pass of a batch to the last weight, and to the `wanted` values."""
    program = model.program
    values: dict[int, Any] = {}
    pairs = [
        *zip(program.params, model.values, strict=True),
        *zip(program.inputs, model.batches[0], strict=True),
        *program.constants.items(),
    ]
    for number, value in pairs:
        values[number] = as_abstract(value)
    seen: dict[Hashable, tuple[Work, list[Any]]] = {}
    work: list[Work] = []
    for step in program.steps:
        ins = [values[n] for n in step.ins]
        key = step.key, *map(str, ins)
        if key not in seen:
            seen[key] = work_and_results(step.run, *ins)
        each, outs = seen[key]
        work.append(each)
        values.update(zip(step.outs, outs, strict=True))
    at, last = _lifetimes(model, wanted)
    batched = [i for i in at if any(out in program.batched for out in program.steps[i].outs)]
    steps = {i: work[i] for i in batched}
    sizes = [
        sum(bytes_of(values[n]) for n in (*s.ins, *s.outs) if n in program.batched) for s in program.steps
    ]
    return Pass(
        sum(steps.values(), Work()),
        _most(model, values, at, last),
        max((sizes[i] for i in batched), default=0),
        values,
        steps,
    )


def work_and_results(fn: Callable[..., Any], *args: Any, trips: int = 1) -> tuple[Work, list[Any]]:
    """The work of a function, and the shapes and dtypes of its results."""
    closed, outs = jax.make_jaxpr(fn, return_shape=True)(*args)
    return work_of(opened(closed)[0], trips), jax.tree.leaves(outs)


def _lifetimes(model: CalibrationModel, wanted: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """The site before which each step runs, and the last site at which each value is needed."""
    program, maker = model.program, makers(model.program)
    at: dict[int, int] = {}
    last: dict[int, int] = {}
    inputs = [uses[0].x for uses in sites(program)]
    last.update({x: place for place, x in enumerate(inputs)})
    for place, x in enumerate((*inputs, *wanted)):
        stack = [x]
        while stack:
            i = maker.get(stack.pop())
            if i is not None and i not in at:
                at[i] = place
                stack.extend(program.steps[i].ins)
    for i, place in at.items():
        for n in program.steps[i].ins:
            last[n] = max(place, last.get(n, 0))
    return at, last


def _most(model: CalibrationModel, values: dict[int, Any], at: dict[int, int], last: dict[int, int]) -> int:
    """The largest sum of the bytes of values that are kept from one site to the next."""
    program = model.program
    inputs = {use.x for use in program.uses}
    change: dict[int, int] = {}
    for i, place in at.items():
        for n in program.steps[i].outs:
            if n in program.batched and (last.get(n, -1) > place or n in inputs):
                change[place] = change.get(place, 0) + bytes_of(values[n])
                change[last[n] + 1] = change.get(last[n] + 1, 0) - bytes_of(values[n])
    return max(itertools.accumulate(change[place] for place in sorted(change)), default=0)


def bytes_of(aval: Any) -> int:
    """The size of an array of this shape and dtype."""
    return math.prod(aval.shape) * aval.dtype.itemsize
