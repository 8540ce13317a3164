"""Control flow and custom derivatives around changed bodies: the calls are rebuilt, not replaced by their bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs.calls import kind_of, scan_parts, while_parts
from jaxprune.jaxprs.derivatives import Derivative
from jaxprune.jaxprs.equations import bind

Function = Callable[..., list[Any]]


def rebuild(
    eqn: JaxprEqn,
    args: Sequence[Any],
    bodies: Sequence[Function],
    rule: tuple[Derivative, Function] | None = None,
) -> list[Any]:
    """Runs a call with other bodies.

    Args:
      eqn: the call.
      args: its operands, which may have other shapes than in the equation.
      bodies: functions that run in place of the bodies of the call (`calls.bodies_of`): inputs -> results.
      rule: the derivative of a custom_jvp or custom_vjp, and a function that runs in place of it. Without a rule
        such a call is differentiated through its body.

    Returns:
      The results.
    """
    (body, *_) = bodies
    match kind_of(eqn):
        case "scan":
            return scan(eqn, args, lambda values, state: (body(*values), state), ())[0]
        case "while":
            return _while(eqn, args, lambda *values: bodies[0](*values)[0], bodies[1])
        case "cond":
            return list(lax.switch(args[0], bodies, *args[1:]))
        case "remat":
            kept = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
            return list(jax.checkpoint(body, **kept)(*args))
        case "linear_solve":
            return _linear_solve(eqn, args, bodies)
        case "custom_jvp" if rule is not None:
            return _custom_jvp(eqn, args, body, *rule)
        case "custom_vjp" if rule is not None:
            return _custom_vjp(args, body, *rule)
    return body(*args)


def scan(
    eqn: JaxprEqn,
    args: Sequence[Any],
    body: Callable[[list[Any], Any], tuple[list[Any], Any]],
    state: Any,
) -> tuple[list[Any], Any]:
    """Runs a scan with another body, which carries an additional state.

    Args:
      eqn: the scan.
      args: its operands.
      body: (inputs of the scan's body, state) -> (results of the body, state).
      state: the state before the first step.

    Returns:
      (the results of the scan, the state after the last step).
    """
    p, (consts, carry, xs) = eqn.params, scan_parts(eqn, args)
    count = len(carry)

    def step(before, xs):
        carry, state = before
        outs, state = body([*consts, *carry, *xs], state)
        return (outs[:count], state), outs[count:]

    (carry, state), ys = lax.scan(
        step,
        (carry, state),
        xs,
        length=None
        if xs
        else p["length"],  # scanned operands define the length themselves: it may be symbolic
        reverse=p["reverse"],
        unroll=p["unroll"],
        _split_transpose=p.get("_split_transpose", False),
    )
    return [*carry, *ys], state


def abstract_operands(eqn: JaxprEqn, args: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """The operands as shapes and dtypes: their current shapes, with the dtypes of the equation's operands."""
    return [
        jax.ShapeDtypeStruct(np.shape(x), v.aval.dtype, weak_type=getattr(v.aval, "weak_type", False))
        for x, v in zip(args, cast(Any, eqn.invars), strict=True)
    ]


def _while(eqn: JaxprEqn, args: Sequence[Any], cond: Callable, body: Function) -> list[Any]:
    """Binds the primitive itself, since a vmapped loop has a predicate for each member of the batch."""
    of_cond, (of_body, carry, _) = while_parts(eqn, abstract_operands(eqn, args))
    traced = {
        "cond_jaxpr": jax.make_jaxpr(cond)(*of_cond, *carry),
        "body_jaxpr": jax.make_jaxpr(body)(*of_body, *carry),
    }
    return bind(eqn, args, **traced)


def _linear_solve(eqn: JaxprEqn, args: Sequence[Any], bodies: Sequence[Function]) -> list[Any]:
    """Binds the primitive itself, since its derivative is a solve with its own products and solvers."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    avals, first, rest = abstract_operands(eqn, args), 0, iter(bodies)
    traced = []
    for length, jaxpr in zip(lengths, jaxprs, strict=True):
        operands = [*avals[first : first + length], *avals[sum(lengths) :]]
        traced.append(None if jaxpr is None else jax.make_jaxpr(next(rest))(*operands))
        first += length
    return bind(eqn, args, jaxprs=type(jaxprs)(*traced))


def _custom_jvp(
    eqn: JaxprEqn, args: Sequence[Any], body: Function, derivative: Derivative, rule: Function
) -> list[Any]:
    count = len(eqn.outvars)
    call = jax.custom_jvp(body)

    def jvp(primals, tangents):
        results = rule(*primals, *(tangents[i] for i in derivative.inexact_in))
        outs, inexact = results[:count], iter(results[count:])
        return outs, [
            next(inexact) if i in derivative.inexact_out else np.zeros(np.shape(out), jax.dtypes.float0)
            for i, out in enumerate(outs)
        ]

    call.defjvp(jvp)
    return list(call(*args))


def _custom_vjp(args: Sequence[Any], body: Function, derivative: Derivative, rule: Function) -> list[Any]:
    call = jax.custom_vjp(body)

    def backward(residuals, cotangents):
        results = iter(rule(*residuals, *(cotangents[i] for i in derivative.inexact_out)))
        return tuple(next(results) if i in derivative.inexact_in else None for i in range(len(residuals)))

    call.defvjp(lambda *values: (body(*values), values), backward)
    return list(call(*args))
