"""Totals over the operands of a model's equations, accumulated through its control flow in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import bind, control_flow
from jaxprune.jaxprs.calls import is_inline, kind_of, scan_parts, settled
from jaxprune.jaxprs.equations import literal_value, walk
from jaxprune.surgery.inference.frames import Frame

Totals = dict[str, Any]
# (frame, equation, operands, which of them depend on the inputs) -> what to add to the totals
Observe = Callable[[Frame, JaxprEqn, Sequence[Any], Sequence[bool]], Totals]


def observed(
    frame: Frame, args: Sequence[Any], flags: Sequence[bool], totals: Totals, observe: Observe
) -> tuple[list[Any], Totals]:
    """Runs a call's jaxpr and adds up what `observe` returns for its equations, also inside scans and branches.

    While loops and linear solvers run unchanged: their equations are not observed.

    Args:
      frame: the analysed call.
      args: the arguments of the call.
      flags: which arguments depend on the model's inputs.
      totals: the totals before this call.
      observe: function of an equation that returns what to add to the totals.

    Returns:
      (the call's results, the totals).
    """

    def equation(index: int, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        nonlocal totals
        bodies, of_inputs = frame.calls.get(index, ()), depends[index]
        with eqn.ctx.manager:
            results, totals = _observed_equation(frame, eqn, bodies, operands, of_inputs, totals, observe)
        return results

    _, depends = dependence(frame, flags)
    return walk(frame.jaxpr, frame.consts, args, literal_value, equation), totals


def _observed_equation(
    frame: Frame,
    eqn: JaxprEqn,
    bodies: Sequence[Frame],
    operands: list[Any],
    flags: Sequence[bool],
    totals: Totals,
    observe: Observe,
) -> tuple[list[Any], Totals]:
    match kind_of(eqn):
        case "scan":
            (body,), flags = bodies, _scan_dependence(bodies[0], eqn, flags)
            return control_flow.scan(
                eqn, operands, lambda args, totals: observed(body, args, flags, totals, observe), totals
            )
        case "cond":
            branches = [_branch(body, flags[1:], observe) for body in bodies]
            return lax.switch(operands[0], branches, operands[1:], totals)
    if bodies and is_inline(eqn):
        return observed(bodies[0], operands, flags, totals, observe)
    return bind(eqn, operands), _added(totals, observe(frame, eqn, operands, flags))


def dependence(frame: Frame, flags: Sequence[bool]) -> tuple[list[bool], list[list[bool]]]:
    """Which results of a call, and which operands of its equations, depend on flagged arguments."""
    operands: list[list[bool]] = []

    def equation(index: int, eqn: JaxprEqn, ins: list[bool]) -> list[bool]:
        operands.append(ins)
        return _dependence_of(frame.calls.get(index, ()), eqn, ins)

    consts = [False] * len(frame.consts)
    return walk(frame.jaxpr, consts, flags, lambda literal: False, equation), operands


def _dependence_of(bodies: Sequence[Frame], eqn: JaxprEqn, ins: list[bool]) -> list[bool]:
    match kind_of(eqn):
        case "scan":
            return dependence(bodies[0], _scan_dependence(bodies[0], eqn, ins))[0]
        case "cond":
            branches = zip(*(dependence(body, ins[1:])[0] for body in bodies), strict=True)
            return [ins[0] or any(outs) for outs in branches]
    if bodies and is_inline(eqn):
        return dependence(bodies[0], ins)[0]
    return [any(ins)] * len(eqn.outvars)


def _scan_dependence(body: Frame, eqn: JaxprEqn, ins: Sequence[bool]) -> list[bool]:
    """The flags of a scan's arguments; the carry has the flags that hold after any number of steps."""
    consts, carry, xs = scan_parts(eqn, ins)

    def step(carry: list[bool]) -> list[bool]:
        return dependence(body, [*consts, *carry, *xs])[0]

    outs = settled(step, carry, lambda a, b: a or b)
    return [*consts, *outs[: len(carry)], *xs]


def _branch(body: Frame, flags: Sequence[bool], observe: Observe) -> Callable:
    return lambda args, totals: observed(body, args, flags, totals, observe)


def _added(totals: Totals, more: Totals) -> Totals:
    sums = {key: jax.tree.map(jnp.add, totals[key], value) for key, value in more.items()}
    return {**totals, **sums}
