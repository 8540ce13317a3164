"""Which units are computed by parameters; zeroing parameters does not remove other units from sums over them.

Copies of an input and features that a constant computes are computed by no parameter, and copies of units by no
parameter of their own. The rows of a weight that reads them can be zeroed, but other sums over them still
include them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune.jaxprs.calls import is_inline, kind_of, scan_parts, settled, while_parts
from jaxprune.jaxprs.equations import walk
from jaxprune.surgery.inference.axes import Atom, Axis, leaves_of
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.rules import RULES

# What a value depends on: the units along which parameters entered it, and whether any parameter or input did.
Entered = Set[Any]
_PARAMETER, _INPUT = "parameter", "input"

# If one operand is zero, the others remain: parameters must have entered all operands that inputs have entered.
_TERMS = frozenset(
    {
        *("add", "add_any", "sub", "max", "min", "clamp", "select_n", "concatenate", "stack"),
        *("dynamic_update_slice", "scatter", "scatter-add"),
    }
)
_LOOKUPS = frozenset(("gather", "dynamic_slice"))


def made_units(frame: Frame, makes: Sequence[bool], candidates: Set[Atom]) -> set[Atom]:
    """The candidates that are summed in values that depend on parameters, and never without a parameter of theirs.

    Args:
      frame: the call of the whole function.
      makes: which of its inputs are parameters.
      candidates: leaf atoms.

    Returns:
      The atoms that at least one contraction or reduction sums with no operand computed from inputs alone, and that
      every contraction or reduction sums with an operand that parameters have entered unit by unit.
    """
    walk = _Walk(candidates)
    ins = zip(frame.jaxpr.invars, makes, strict=True)
    walk.call(frame, [{*walk.units(frame.of(v)), _PARAMETER} if made else {_INPUT} for v, made in ins])
    return walk.made - walk.bare


class _Walk:
    """Tracks through all equations which parameters and inputs have entered each value."""

    def __init__(self, candidates: Set[Atom]):
        self.candidates = candidates
        self.made: set[Atom] = set()
        self.bare: set[Atom] = set()

    def units(self, axes: Iterable[Axis]) -> set[Atom]:
        return {leaf for axis in axes for leaf in leaves_of(axis)} & self.candidates

    def call(self, frame: Frame, entered: Sequence[Entered]) -> list[Entered]:
        """What has entered the results of a call, given what has entered its operands."""

        def known(atoms: Sequence[Any], entered: Sequence[Entered]) -> list[Entered]:
            return [set() if frame.is_constant(v) else e for v, e in zip(atoms, entered, strict=True)]

        def equation(index: int, eqn: JaxprEqn, ins: list[Entered]) -> Sequence[Entered]:
            if all(map(frame.is_constant, eqn.invars)):
                return [set()] * len(eqn.outvars)
            return self.equation(frame, index, eqn, known(eqn.invars, ins))

        consts = [set()] * len(frame.consts)
        outs = walk(frame.jaxpr, consts, entered, lambda literal: set(), equation)
        return known(frame.jaxpr.outvars, outs)

    def equation(self, frame: Frame, index: int, eqn: JaxprEqn, ins: Sequence[Entered]) -> list[Entered]:
        bodies = frame.calls.get(index, ())
        match kind_of(eqn):
            case "scan":
                return self.loop(bodies[0], *scan_parts(eqn, ins))
            case "while":
                of_cond, parts = while_parts(eqn, ins)
                carry = self.loop(bodies[1], *parts)
                self.call(bodies[0], [*of_cond, *carry])
                return carry
            case "cond":
                return [
                    set().union(*outs) for outs in zip(*(self.call(b, ins[1:]) for b in bodies), strict=True)
                ]
        if bodies and is_inline(eqn):
            return self.call(bodies[0], ins)
        self.sums(frame, eqn, ins)
        if (
            eqn.primitive.name in _LOOKUPS
            and frame.is_constant(eqn.invars[0])
            and id(eqn) not in frame.routed
        ):
            return [set()]
        entered = set().union(*ins)
        if eqn.primitive.name in _TERMS:
            first = 1 if eqn.primitive.name == "select_n" else 0
            for axes, known in list(zip(frame.ins(eqn), ins, strict=True))[first:]:
                if _INPUT in known:
                    entered -= self.units(axes) - known
        if (
            id(eqn) in frame.routed and _PARAMETER in entered
        ):  # a router with parameters never gives a pruned unit
            entered |= self.units(frame.routed[id(eqn)].units)
        return [{*self.units(frame.of(v)), _PARAMETER, _INPUT} & entered for v in eqn.outvars]

    def loop(
        self, body: Frame, consts: list[Entered], carry: list[Entered], xs: list[Entered]
    ) -> list[Entered]:
        """What has entered the results of a loop, with a carry that holds after any number of steps."""
        before = set(self.made), set(self.bare)

        def step(carry: list[Entered]) -> list[Entered]:
            self.made, self.bare = map(set, before)  # only what the last pass sees counts
            return self.call(body, [*consts, *carry, *xs])

        return settled(step, carry, lambda a, b: a | b)

    def sums(self, frame: Frame, eqn: JaxprEqn, ins: Sequence[Entered]) -> None:
        rule = RULES.get(eqn.primitive.name)
        if rule is None or rule.reduces is None:
            return
        axes = frame.ins(eqn)
        reduced = [
            (self.units(axes[operand][dim] for dim in dims), ins[operand])
            for operand, dims, _ in rule.reduces(eqn, axes)
        ]
        summed = set().union(*(units for units, _ in reduced))
        copies = (units for units, entered in reduced if _INPUT in entered and _PARAMETER not in entered)
        self.made |= summed.difference(*copies)
        self.bare |= summed.difference(*(units & entered for units, entered in reduced))
