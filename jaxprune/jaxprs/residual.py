"""Residual streams: products that are added to a value which bypasses them."""

from __future__ import annotations

from jaxprune.jaxprs.program import Program, Step, Use
from jaxprune.jaxprs.rows import DotRows


def residual_streams(program: Program) -> dict[Use, tuple[int, int]]:
    """The products that are added to a residual stream, possibly after a bias, and the stream before the addition.

    No other step reads such a product, and its stream depends on the inputs and on no later weight.
    """
    maker = {out: step for step in program.steps for out in step.outs}
    readers: dict[int, list[Step]] = {}
    for step in program.steps:
        for number in set(step.ins):
            readers.setdefault(number, []).append(step)
    found = {}
    for place, use in enumerate(program.uses):
        passing = _added_to(program, readers, use)
        if use.out is not None and passing is not None:
            later = {u.out for u in program.uses[place:]}
            if not later & _ancestors(maker, passing):
                found[use] = use.out, passing
    return found


def _added_to(program: Program, readers: dict[int, list[Step]], use: Use) -> int | None:
    if use.out is None or not isinstance(use.rows, DotRows) or use.rows.groups:
        return None
    number = use.out
    while True:
        (step, *more) = readers.get(number) or [None]
        if step is None or more or step.name != "add":
            return None
        others = [n for n in step.ins if n != number]
        if len(others) != 1:
            return None
        if others[0] in program.batched:
            return others[0]
        number = step.outs[0]  # a bias: the stream is added after it


def _ancestors(maker: dict[int, Step], number: int) -> set[int]:
    """A value and all values that it depends on."""
    stack, seen = [number], set()
    while stack:
        at = stack.pop()
        if at not in seen:
            seen.add(at)
            stack.extend(maker[at].ins if at in maker else ())
    return seen
