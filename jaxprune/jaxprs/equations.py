"""Equations of a jaxpr: applying one of them again, and walking through all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jax.extend.core import Jaxpr, JaxprEqn, Literal

T = TypeVar("T")


def shape_of(atom: Any) -> tuple[int, ...]:
    """Shape of a variable or literal of a jaxpr; tokens and the like have none."""
    return getattr(atom.aval, "shape", ())


def bind(eqn: JaxprEqn, args: Sequence[Any], **changed: Any) -> list[Any]:
    """Applies an equation's primitive, with some of its parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    outs = eqn.primitive.bind(*args, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def walk(
    jaxpr: Jaxpr,
    consts: Sequence[T],
    args: Sequence[T],
    literal: Callable[[Literal], T],
    equation: Callable[[int, JaxprEqn, list[T]], Sequence[T]],
) -> list[T]:
    """Walks through the equations of a jaxpr in order, with one fact about each value.

    The caller chooses the kind of fact: the value itself, its origin, or its axes.

    Args:
      jaxpr: an open jaxpr.
      consts: the facts about its constants.
      args: the facts about its inputs.
      literal: function from a literal to the fact about it.
      equation: (number of an equation, the equation, facts about its operands) -> facts about its results.

    Returns:
      The facts about the results.
    """
    known: dict[Any, T] = dict(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> T:
        return literal(atom) if isinstance(atom, Literal) else known[atom]

    for index, eqn in enumerate(jaxpr.eqns):
        outs = equation(index, eqn, [read(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def literal_value(atom: Literal) -> Any:
    """The value of a literal; the `literal` argument of `walk` if the facts are the values themselves."""
    return atom.val
