"""Routers: the parameters of a group of experts that decide which of them are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune.jaxprs.calls import is_inline, kind_of, scan_parts
from jaxprune.jaxprs.equations import walk
from jaxprune.surgery.inference.axes import Atom, leaves_of, normal
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.model import Model

Reached = frozenset[int]  # numbers of inputs


def router_inputs(model: Model, atom: Atom) -> Set[int]:
    """Which inputs of a model's frame reach a choice among experts through values that have their axis."""
    search = _Search(atom)
    of_params = model.of_params
    facts = [frozenset([i]) if made else frozenset() for i, made in enumerate(of_params)]
    search.call(model.frame, facts)
    return search.found


class _Search:
    def __init__(self, atom: Atom):
        self.atom = atom
        self.found: set[int] = set()

    def call(self, frame: Frame, args: Sequence[Reached]) -> list[Reached]:
        def equation(index: int, eqn: JaxprEqn, ins: list[Reached]) -> list[Reached]:
            return self.equation(frame, index, eqn, ins)

        ins = [
            x if self.has_units(frame, v) else frozenset()
            for v, x in zip(frame.jaxpr.invars, args, strict=True)
        ]
        return walk(
            frame.jaxpr, [frozenset()] * len(frame.consts), ins, lambda literal: frozenset(), equation
        )

    def equation(self, frame: Frame, index: int, eqn: JaxprEqn, ins: list[Reached]) -> list[Reached]:
        bodies = frame.calls.get(index, ())
        match kind_of(eqn):
            case "scan":
                consts, carry, xs = scan_parts(eqn, ins)
                return self.call(bodies[0], [*consts, *carry, *xs])
            case "cond":
                branches = zip(*(self.call(body, ins[1:]) for body in bodies), strict=True)
                return [frozenset().union(*outs) for outs in branches]
        if bodies and is_inline(eqn):
            return self.call(bodies[0], ins)
        choice = frame.choices.get(id(eqn))
        if choice is not None and normal(choice.axis) == (self.atom,):
            self.found |= ins[0]
        reached = frozenset().union(*ins)
        return [reached if self.has_units(frame, v) else frozenset() for v in eqn.outvars]

    def has_units(self, frame: Frame, var: Any) -> bool:
        axes: Mapping[Any, Any] = frame.axes
        return any(self.atom is leaf for axis in axes.get(var, ()) for leaf in leaves_of(axis))
