"""A frame: one call of a jaxpr, with the axes of its values and the values of its constants where known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from jaxprune.jaxprs import Source, bind, shape_of
from jaxprune.jaxprs.derivatives import Derivative
from jaxprune.surgery.inference.axes import Axes, Axis, Reason, fresh

# Constants with more entries are not read while a function is analysed.
_LARGEST_TABLE = 2**22


class Choice(NamedTuple):
    """An argmax or top_k: the axis whose positions it gives, and how many of them."""

    axis: Axis
    number: int
    reason: Reason


class Routed(NamedTuple):
    """An equation that uses positions on an axis that may lose units.

    ins: axes of the operands without those that it is indexed along by such positions, where there are any.
    ranks: constant operands that count the positions on an axis; in a small function they count the kept ones.
    units: the axes whose positions it uses.
    """

    ins: Sequence[Axes] | None
    ranks: Mapping[int, Axis]
    units: tuple[Axis, ...]


class Frame:
    """One call of a jaxpr: the axes of its values and the frames of the calls inside it.

    A shared jaxpr has a frame per call, because each call may have other axes. A value that depends on constants
    alone (a table, a mask, zeros) is treated like a NumPy array: no axes are inferred for the equations that make
    it, and it is not cut there. Each use of it has its own axes and is cut by them, so that a table couples only
    axes that are combined in one equation.
    """

    __slots__ = (
        *("axes", "caller", "calls", "choices", "constant", "consts", "derivatives", "facts", "jaxpr"),
        *("known", "makers", "origins", "positions", "routed", "uses", "whole"),
    )

    def __init__(self, jaxpr: Jaxpr, consts: Sequence[Any], caller: Source | None = None):
        self.jaxpr = jaxpr
        self.caller = caller
        self.consts = tuple(consts)
        self.axes: dict[Any, Axes] = {}
        self.calls: dict[int, tuple[Frame, ...]] = {}
        self.choices: dict[int, Choice] = {}  # id of an equation -> what it chooses
        self.constant: set[Var] = set(jaxpr.constvars)
        self.derivatives: dict[int, tuple[Derivative, Frame]] = {}
        self.facts: dict[Var, Any] = {}  # what is known about integers that are positions on an axis
        self.known: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        self.makers: dict[Var, JaxprEqn] = {}  # constant -> the equation on constants that makes it
        self.origins: dict[
            Var, Callable[[], Any]
        ] = {}  # constant of another frame -> function that returns its value
        self.positions: set[Var] = set()
        self.routed: dict[int, Routed] = {}  # id of an equation -> how it uses positions
        self.uses: dict[tuple[int | None, int], Axes] = {}  # (id of an equation or None, place) -> axes
        self.whole: dict[int, tuple[bool, ...]] = {}  # which operands a call takes whole, as constants

    def of(self, atom: Any) -> Axes:
        """The axes of a variable at the equation that makes it."""
        if atom not in self.axes:
            self.axes[atom] = unknown(atom.aval)
        return self.axes[atom]

    def is_constant(self, atom: Any) -> bool:
        """Whether a value depends on constants alone."""
        return isinstance(atom, Literal) or atom in self.constant or atom in self.makers

    def fact(self, atom: Any) -> Any:
        """What is known about a value as positions on an axis (`positions.Fact`), or None."""
        return None if isinstance(atom, Literal) else self.facts.get(atom)

    def add_constant(self, var: Var, origin: Callable[[], Any]) -> None:
        self.constant.add(var)
        self.origins[var] = origin

    def value(self, atom: Any) -> Any:
        """The value of a constant, or None if it is not known before the function runs."""
        if isinstance(atom, Literal):
            return atom.val
        if atom not in self.known:
            self.known[atom] = self._computed(atom) if self.is_constant(atom) else None
        value = self.known[atom]
        return None if isinstance(value, Tracer) else value

    def ins(self, eqn: JaxprEqn) -> list[Axes]:
        """The axes of an equation's operands."""
        return self._used(id(eqn), eqn.invars)

    @property
    def outs(self) -> list[Axes]:
        return self._used(None, self.jaxpr.outvars)

    def source(self, eqn: JaxprEqn) -> Source:
        return Source(eqn, self.caller)

    def _used(self, by: int | None, atoms: Sequence[Any]) -> list[Axes]:
        axes = []
        for place, atom in enumerate(atoms):
            if self.is_constant(atom):
                key = by, place
                if key not in self.uses:
                    self.uses[key] = unknown(atom.aval)
                axes.append(self.uses[key])
            else:
                axes.append(self.of(atom))
        return axes

    def _computed(self, var: Var) -> Any:
        if var in self.origins:
            return self.origins[var]()
        eqn = self.makers.get(var)
        if eqn is None or eqn.effects or not all(map(_is_small, eqn.outvars)):
            return None
        operands = [self.value(v) for v in eqn.invars]
        if any(operand is None for operand in operands):
            return None
        try:
            with jax.ensure_compile_time_eval():
                outs = bind(eqn, operands)
        except Exception:  # it can be computed only on a mesh or another platform
            return None
        self.known.update(zip(eqn.outvars, outs, strict=True))
        return self.known[var]


def _is_small(var: Var) -> bool:
    shape = shape_of(var)
    return all(isinstance(size, int) for size in shape) and math.prod(shape) <= _LARGEST_TABLE


def unknown(aval: Any, reason: Reason | None = None) -> Axes:
    """New axes, which equal no other axes yet."""
    return tuple(fresh(size, reason) for size in getattr(aval, "shape", ()))
