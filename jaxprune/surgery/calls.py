"""Control flow and custom derivatives around bodies that have changed: rebuilt, never inlined away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jax_compat import REMATERIALIZED, scan_counts
from jaxprune.surgery.frames import Frame

Evaluate = Callable[[Frame, Sequence[Any], Any], list[Any]]


def rebuild(
    frame: Frame, index: int, eqn: JaxprEqn, args: Sequence[Any], mode: Any, evaluate: Evaluate
) -> list[Any]:
    """Runs the call at an equation with its bodies evaluated in a mode."""
    bodies = frame.calls[index]

    def body(*values: Any) -> list[Any]:
        return evaluate(bodies[0], values, mode)

    match eqn.primitive.name:
        case "scan":
            return _scan(eqn, args, body)
        case "while":
            return _while(
                eqn,
                args,
                lambda *values: evaluate(bodies[0], values, mode)[0],
                lambda *values: evaluate(bodies[1], values, mode),
            )
        case "cond":
            branches = [_branch(branch, mode, evaluate) for branch in bodies]
            return list(lax.switch(args[0], branches, *args[1:]))
        case name if name in REMATERIALIZED:
            kept = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
            return list(jax.checkpoint(body, **kept)(*args))
        case "custom_linear_solve":
            return _linear_solve(eqn, args, [_branch(branch, mode, evaluate) for branch in bodies])
        case "custom_jvp_call" if index in frame.derivatives:
            return _custom_jvp(frame, index, eqn, args, mode, evaluate, body)
        case "custom_vjp_call" if index in frame.derivatives:
            return _custom_vjp(frame, index, args, mode, evaluate, body)
    return body(*args)


def _branch(branch: Frame, mode: Any, evaluate: Evaluate) -> Callable[..., list[Any]]:
    return lambda *values: evaluate(branch, values, mode)


def _scan(eqn: JaxprEqn, args: Sequence[Any], body: Callable[..., list[Any]]) -> list[Any]:
    p = eqn.params
    n_consts, n_carry = scan_counts(eqn)
    consts, carry, xs = args[:n_consts], args[n_consts : n_consts + n_carry], args[n_consts + n_carry :]

    def step(carry, xs):
        outs = body(*consts, *carry, *xs)
        return outs[:n_carry], outs[n_carry:]

    carry, ys = lax.scan(
        step,
        list(carry),
        list(xs),
        length=None if xs else p["length"],  # with operands their own length counts: it may be symbolic
        reverse=p["reverse"],
        unroll=p["unroll"],
        _split_transpose=p.get("_split_transpose", False),
    )
    return [*carry, *ys]


def _while(eqn: JaxprEqn, args: Sequence[Any], cond: Callable, body: Callable[..., list[Any]]) -> list[Any]:
    """Binds the primitive itself: a loop that was vmapped has a predicate for each member of the batch."""
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    avals = _abstract(eqn, args)
    bodies = {
        "cond_jaxpr": jax.make_jaxpr(cond)(*avals[:n_cond], *avals[n_cond + n_body :]),
        "body_jaxpr": jax.make_jaxpr(body)(*avals[n_cond:]),
    }
    return list(eqn.primitive.bind(*args, **{**eqn.params, **bodies}))


def _linear_solve(eqn: JaxprEqn, args: Sequence[Any], bodies: Sequence[Callable]) -> list[Any]:
    """Binds the primitive itself: its derivative is a solve with the products and solvers it has."""
    lengths, jaxprs = eqn.params["const_lengths"], eqn.params["jaxprs"]
    avals, first, rest = _abstract(eqn, args), 0, iter(bodies)
    traced = []
    for length, jaxpr in zip(lengths, jaxprs, strict=True):
        operands = [*avals[first : first + length], *avals[sum(lengths) :]]
        traced.append(None if jaxpr is None else jax.make_jaxpr(next(rest))(*operands))
        first += length
    return list(eqn.primitive.bind(*args, **{**eqn.params, "jaxprs": type(jaxprs)(*traced)}))


def _abstract(eqn: JaxprEqn, args: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct(np.shape(x), v.aval.dtype, weak_type=getattr(v.aval, "weak_type", False))
        for x, v in zip(args, cast(Any, eqn.invars), strict=True)
    ]


def _custom_jvp(
    frame: Frame,
    index: int,
    eqn: JaxprEqn,
    args: Sequence[Any],
    mode: Any,
    evaluate: Evaluate,
    body: Callable[..., list[Any]],
) -> list[Any]:
    derivative, rule = frame.derivatives[index]
    count = len(eqn.outvars)
    call = jax.custom_jvp(body)

    def jvp(primals, tangents):
        results = evaluate(rule, [*primals, *(tangents[i] for i in derivative.inexact_in)], mode)
        outs, inexact = results[:count], iter(results[count:])
        return outs, [
            next(inexact) if i in derivative.inexact_out else np.zeros(np.shape(out), jax.dtypes.float0)
            for i, out in enumerate(outs)
        ]

    call.defjvp(jvp)
    return list(call(*args))


def _custom_vjp(
    frame: Frame,
    index: int,
    args: Sequence[Any],
    mode: Any,
    evaluate: Evaluate,
    body: Callable[..., list[Any]],
) -> list[Any]:
    derivative, rule = frame.derivatives[index]
    call = jax.custom_vjp(body)

    def backward(residuals, cotangents):
        directions = [cotangents[i] for i in derivative.inexact_out]
        results = iter(evaluate(rule, [*residuals, *directions], mode))
        return tuple(next(results) if i in derivative.inexact_in else None for i in range(len(residuals)))

    call.defvjp(lambda *values: (body(*values), values), backward)
    return list(call(*args))
