"""Sums over the operands of a model's equations, carried through its control flow in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn, Literal

from jaxprune.jax_compat import scan_counts
from jaxprune.surgery.frames import SEALED, Frame
from jaxprune.surgery.interpreter import bind

Totals = dict[str, Any]
# (frame, equation, operands, which of them depend on the inputs) -> what to add to the totals
Observe = Callable[[Frame, JaxprEqn, Sequence[Any], Sequence[bool]], Totals]


def observed(
    frame: Frame, args: Sequence[Any], flags: Sequence[bool], totals: Totals, observe: Observe
) -> tuple[list[Any], Totals]:
    """Runs a call's jaxpr and adds up what `observe` sees at its equations, also inside scans and branches.

    While loops and linear solvers run as they are: nothing is seen inside them.

    Args:
      frame: the call, analysed.
      args: its arguments.
      flags: which of them depend on the model's inputs.
      totals: what was added up before.
      observe: looks at an equation.

    Returns:
      (the call's results, the totals).
    """
    values: dict[Any, Any] = dict(zip(frame.jaxpr.constvars, frame.consts, strict=True))
    values.update(zip(frame.jaxpr.invars, args, strict=True))
    depends = dependence(frame, flags)

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for index, eqn in enumerate(frame.jaxpr.eqns):
        operands = [read(v) for v in eqn.invars]
        of_inputs = [not isinstance(v, Literal) and depends[v] for v in eqn.invars]
        bodies = frame.calls.get(index, ())
        with eqn.ctx.manager:
            results, totals = _observed_equation(frame, eqn, bodies, operands, of_inputs, totals, observe)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in frame.jaxpr.outvars], totals


def _observed_equation(
    frame: Frame,
    eqn: JaxprEqn,
    bodies: Sequence[Frame],
    operands: list[Any],
    flags: Sequence[bool],
    totals: Totals,
    observe: Observe,
) -> tuple[list[Any], Totals]:
    match eqn.primitive.name:
        case "scan":
            return _scan(bodies[0], eqn, operands, flags, totals, observe)
        case "cond":
            branches = [_branch(body, flags[1:], observe) for body in bodies]
            return lax.switch(operands[0], branches, operands[1:], totals)
        case name if bodies and name not in SEALED:
            return observed(bodies[0], operands, flags, totals, observe)
    return bind(eqn, operands), _added(totals, observe(frame, eqn, operands, flags))


def dependence(frame: Frame, flags: Sequence[bool]) -> dict[Any, bool]:
    """Which variables of a call depend on those of its arguments that are flagged."""
    depends = dict.fromkeys(frame.jaxpr.constvars, False)
    depends.update(zip(frame.jaxpr.invars, flags, strict=True))
    for index, eqn in enumerate(frame.jaxpr.eqns):
        ins = [not isinstance(v, Literal) and depends[v] for v in eqn.invars]
        depends.update(zip(eqn.outvars, _dependence_of(frame.calls.get(index, ()), eqn, ins), strict=True))
    return depends


def _dependence_of(bodies: Sequence[Frame], eqn: JaxprEqn, ins: list[bool]) -> list[bool]:
    def outs_of(body: Frame, flags: Sequence[bool]) -> list[bool]:
        depends = dependence(body, flags)
        return [not isinstance(v, Literal) and depends[v] for v in body.jaxpr.outvars]

    match eqn.primitive.name:
        case "scan":
            ins = _scan_dependence(bodies[0], eqn, ins)
            return outs_of(bodies[0], ins)
        case "cond":
            branches = zip(*(outs_of(body, ins[1:]) for body in bodies), strict=True)
            return [ins[0] or any(outs) for outs in branches]
        case name if bodies and name not in SEALED:
            return outs_of(bodies[0], ins)
    return [any(ins)] * len(eqn.outvars)


def _scan_dependence(body: Frame, eqn: JaxprEqn, ins: Sequence[bool]) -> list[bool]:
    """The flags of a scan's arguments, those of the carry as they are after any number of steps."""
    first, count = scan_counts(eqn)
    flags = list(ins)
    while True:
        depends = dependence(body, flags)
        carry = [not isinstance(v, Literal) and depends[v] for v in body.jaxpr.outvars[:count]]
        now = [a or b for a, b in zip(flags[first : first + count], carry, strict=True)]
        if now == flags[first : first + count]:
            return flags
        flags[first : first + count] = now


def _scan(
    body: Frame, eqn: JaxprEqn, args: list[Any], flags: Sequence[bool], totals: Totals, observe: Observe
) -> tuple[list[Any], Totals]:
    p = eqn.params
    first, count = scan_counts(eqn)
    flags = _scan_dependence(body, eqn, flags)
    consts, carry, xs = args[:first], args[first : first + count], args[first + count :]

    def step(state, xs):
        carry, totals = state
        outs, totals = observed(body, [*consts, *carry, *xs], flags, totals, observe)
        return (outs[:count], totals), outs[count:]

    (carry, totals), ys = lax.scan(
        step, (carry, totals), xs, length=None if xs else p["length"], reverse=p["reverse"]
    )
    return [*carry, *ys], totals


def _branch(body: Frame, flags: Sequence[bool], observe: Observe) -> Callable:
    return lambda args, totals: observed(body, args, flags, totals, observe)


def _added(totals: Totals, more: Totals) -> Totals:
    sums = {key: jax.tree.map(jnp.add, totals[key], value) for key, value in more.items()}
    return {**totals, **sums}
