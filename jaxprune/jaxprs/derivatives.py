"""The derivative rules of custom_jvp and custom_vjp calls, as jaxprs at the traced shapes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from jaxprune.jax_compat import without_dead_code
from jaxprune.jaxprs.calls import kind_of
from jaxprune.jaxprs.equations import bind


class Derivative(NamedTuple):
    """A derivative of a call as a function of (inputs, directions).

    For custom_jvp the directions are the tangents of `inexact_in`, and the results are the outputs followed by the
    tangents of `inexact_out`. For custom_vjp the directions are the cotangents of `inexact_out`, and the results are
    the cotangents of `inexact_in`; the function includes the forward pass.
    """

    closed: ClosedJaxpr
    inexact_in: tuple[int, ...]
    inexact_out: tuple[int, ...]


def derivative_of(eqn: JaxprEqn) -> Derivative:
    """Traces the derivative rule of a custom_jvp or custom_vjp call."""
    ins = [_abstract(v.aval) for v in eqn.invars]
    outs = [_abstract(v.aval) for v in eqn.outvars]
    constants = eqn.params["num_consts"]  # closed over by the function: its rule has no tangents for them
    inexact_in = tuple(
        i for i, x in enumerate(ins) if i >= constants and jnp.issubdtype(x.dtype, jnp.inexact)
    )
    inexact_out = tuple(i for i, x in enumerate(outs) if jnp.issubdtype(x.dtype, jnp.inexact))

    def call(args, inexact):
        args = list(args)
        for i, x in zip(inexact_in, inexact, strict=True):
            args[i] = x
        return bind(eqn, args)

    def jvp(args, tangents):
        outs, tangents_out = jax.jvp(
            lambda *inexact: call(args, inexact), [args[i] for i in inexact_in], list(tangents)
        )
        return [*outs, *(tangents_out[i] for i in inexact_out)]

    def vjp(args, cotangents):
        def inexact_call(*inexact):
            outs = call(args, inexact)
            return [outs[i] for i in inexact_out]

        _, pull = jax.vjp(inexact_call, *[args[i] for i in inexact_in])
        return list(pull(list(cotangents)))

    if kind_of(eqn) == "custom_jvp":
        closed = jax.make_jaxpr(jvp)(ins, [ins[i] for i in inexact_in])
    else:
        closed = jax.make_jaxpr(vjp)(ins, [outs[i] for i in inexact_out])
    return Derivative(without_dead_code(closed), inexact_in, inexact_out)


def _abstract(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
