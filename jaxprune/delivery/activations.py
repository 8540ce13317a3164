"""Functions of `jax.nn` that ONNX has as one operator, found in a jaxpr by their equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal


class Activation(NamedTuple):
    """A function of `jax.nn` with its arguments, and the variable that it is applied to."""

    name: str
    arguments: dict[str, Any]
    operand: Any

    def call(self, x: Any) -> Any:
        """What `jax.nn` has under this name when it is called, applied to an array."""
        return getattr(jax.nn, self.name)(x, **self.arguments)


Inlined = Callable[[Callable, jax.ShapeDtypeStruct], Jaxpr]
Makers = dict[Any, JaxprEqn]


def find_activations(jaxpr: Jaxpr, inlined: Inlined) -> dict[Any, Activation]:
    """The results of equations that together are an activation.

    Args:
      jaxpr: a jaxpr without calls.
      inlined: gives the jaxpr without calls of a function of one array.

    Returns:
      Variable -> the activation that it is the result of.
    """
    makers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    gelus: dict[str, list[tuple[bool, Jaxpr]]] = {}

    def gelu(eqn: JaxprEqn) -> Activation | None:
        aval = eqn.outvars[0].aval
        if str(aval) not in gelus:
            spec = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
            gelus[str(aval)] = [
                (flag, inlined(Activation("gelu", {"approximate": flag}, None).call, spec))
                for flag in (False, True)
            ]
        for flag, pattern in gelus[str(aval)]:
            operand = _operand(pattern, eqn.outvars[0], makers)
            if operand is not None:
                return Activation("gelu", {"approximate": flag}, operand)
        return None

    finders = {"max": _relu, "mul": gelu, "copy": gelu, "div": lambda eqn: _softmax(eqn, makers)}
    found = {}
    for eqn in jaxpr.eqns:
        finder = finders.get(eqn.primitive.name)
        if finder is not None and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
            activation = finder(eqn)
            if activation is not None:
                found[eqn.outvars[0]] = activation
    return found


def _relu(eqn: JaxprEqn) -> Activation | None:
    x, zero = eqn.invars
    if isinstance(x, Literal) or not isinstance(zero, Literal) or np.ndim(zero.val) or zero.val != 0:
        return None
    return Activation("relu", {}, x)


def _softmax(eqn: JaxprEqn, makers: Makers) -> Activation | None:
    """exp(x) / sum(exp(x)), also where a number of each row (its maximum) is first subtracted from x."""
    if any(isinstance(atom, Literal) for atom in eqn.invars):
        return None
    ratio, exp, sums = eqn.invars[0], makers.get(eqn.invars[0]), makers.get(eqn.invars[1])
    if (
        sums is None
        or exp is None
        or exp.primitive.name != "exp"
        or sums.primitive.name != "broadcast_in_dim"
    ):
        return None
    if isinstance(sums.invars[0], Literal) or isinstance(exp.invars[0], Literal):
        return None
    total = makers.get(sums.invars[0])
    if total is None or total.primitive.name != "reduce_sum" or total.invars[0] is not ratio:
        return None
    axes, ndim = tuple(map(int, total.params["axes"])), ratio.aval.ndim
    kept = tuple(axis for axis in range(ndim) if axis not in axes)
    if len(axes) != 1 or tuple(map(int, sums.params["broadcast_dimensions"])) != kept:
        return None
    shifted = makers.get(exp.invars[0])
    operand = exp.invars[0]
    if shifted is not None and shifted.primitive.name == "sub" and not isinstance(shifted.invars[0], Literal):
        x, shift = shifted.invars
        if shift.aval.ndim == ndim and shift.aval.shape[axes[0]] == 1 and x.aval.shape == operand.aval.shape:
            operand = x
    return Activation("softmax", {"axis": axes[0]}, operand)


def _operand(pattern: Jaxpr, result: Any, makers: Makers) -> Any:
    """The variable for which a pattern gives a result; None if other equations made it."""
    (argument,), (last,) = pattern.invars, pattern.outvars
    made = {var: eqn for eqn in pattern.eqns for var in eqn.outvars}
    seen: dict[Any, Any] = {}
    left = [(last, result)]
    while left:
        expected, atom = left.pop()
        if isinstance(expected, Literal) or isinstance(atom, Literal):
            both = isinstance(expected, Literal) and isinstance(atom, Literal)
            if not both or str(expected) != str(atom):
                return None
            continue
        if expected in seen:
            if seen[expected] is not atom:
                return None
            continue
        seen[expected] = atom
        if expected is argument:
            continue
        ours, theirs = made.get(expected), makers.get(atom)
        if ours is None or theirs is None or not _alike(ours, theirs):
            return None
        left.extend(zip(ours.invars, theirs.invars, strict=True))
    return seen.get(argument)


def _alike(a: JaxprEqn, b: JaxprEqn) -> bool:
    return (
        a.primitive.name == b.primitive.name
        and str(a.params) == str(b.params)
        and len(a.invars) == len(b.invars)
    )
