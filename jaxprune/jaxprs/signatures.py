"""Keys of equations: two equations with the same key compute the same, so equal layers are compiled once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from jaxprune.jaxprs.calls import kind_of


def signature(eqn: JaxprEqn) -> Hashable:
    """The key of an equation: its primitive, parameters, literal operands and abstract values."""
    params = eqn.params
    if kind_of(eqn) in ("custom_jvp", "custom_vjp"):
        # Derivative rules are new objects at every call, and a forward pass does not use them.
        params = {"call_jaxpr": params["call_jaxpr"]}
    return (
        eqn.primitive.name,
        _frozen(params),
        tuple(_literal(v) if isinstance(v, Literal) else _aval(v.aval) for v in eqn.invars),
        tuple(_aval(v.aval) for v in eqn.outvars),
    )


def _frozen(value: Any) -> Hashable:
    match value:
        case ClosedJaxpr():
            return ("closed", _of_jaxpr(value.jaxpr), tuple(map(_constant, value.consts)))
        case Jaxpr():
            return ("open", _of_jaxpr(value))
        case dict():
            return tuple((key, _frozen(value[key])) for key in sorted(value))
        case list() | tuple():
            return (type(value).__name__, *map(_frozen, value))
        case np.ndarray():
            return _constant(value)
    try:
        hash(value)
    except TypeError:
        return Identity(value)
    return (type(value), value)  # 1, 1.0 and True are equal, but not the same


def _of_jaxpr(jaxpr: Jaxpr) -> Hashable:
    numbers: dict[Any, int] = {}

    def number(atom: Any) -> Hashable:
        if isinstance(atom, Literal):
            return _literal(atom)
        return numbers.setdefault(atom, len(numbers))

    heads = tuple(map(number, (*jaxpr.constvars, *jaxpr.invars)))
    body = tuple(
        (signature(e), tuple(map(number, e.invars)), tuple(map(number, e.outvars))) for e in jaxpr.eqns
    )
    return heads, body, tuple(map(number, jaxpr.outvars))


def _literal(atom: Literal) -> Hashable:
    return ("literal", _constant(atom.val), _aval(atom.aval))


def _constant(value: Any) -> Hashable:
    if np.ndim(value) == 0 and hasattr(value, "dtype") and value.dtype.kind in "biufc":
        return (str(value.dtype), np.asarray(value).tobytes())
    if isinstance(value, bool | int | float | complex):
        return (type(value), repr(value))
    return Identity(value)


def _aval(aval: Any) -> Hashable:
    return str(aval), getattr(aval, "weak_type", False)


class Identity:
    """A key that equals only the key of the same object, and keeps the object alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)
