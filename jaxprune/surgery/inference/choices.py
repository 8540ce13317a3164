"""How many units a router chooses: an axis that an argmax or top_k searches keeps at least so many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from jax.extend.core import Literal

from jaxprune.surgery.inference.axes import Atom, Reason, freeze, leaves_of, normal
from jaxprune.surgery.inference.frames import Choice, Frame
from jaxprune.surgery.inference.positions import axes_of, freeze_positions

_COMPOSED = "positions on it count units of several kinds"


def settle_choices(frame: Frame) -> Mapping[Atom, int]:
    """Freezes axes whose positions leave the function, or count more than the units of one leaf.

    Args:
      frame: the call of the whole function, once its axes are inferred.

    Returns:
      For each leaf atom that is searched the largest number of its units that are chosen. Where one argmax follows
      another with the first choice left out, both count.
    """
    for var in frame.jaxpr.outvars:
        freeze_positions([frame.fact(var)], Reason("output"), "are an output of the function")
    counts: dict[Atom, int] = {}
    for call in _calls(frame):
        searched: set[Atom] = set()
        for choice in call.choices.values():
            atoms = normal(choice.axis)
            if len(atoms) == 1 and atoms[0].parts is None:
                searched.add(atoms[0])
            else:
                freeze(choice.axis, choice.reason._replace(text=_COMPOSED))
        for atom in searched:
            counts[atom] = max(counts.get(atom, 0), min(_most_chosen(call, atom), atom.size))
    return counts


def _calls(frame: Frame) -> Iterator[Frame]:
    yield frame
    inner = (
        *(f for fs in frame.calls.values() for f in fs),
        *(rule for _, rule in frame.derivatives.values()),
    )
    for call in inner:
        yield from _calls(call)


def _most_chosen(frame: Frame, atom: Atom) -> int:
    """The largest number of units that are chosen one after another, along values that have the units' axis."""
    chosen: dict[object, int] = {}
    most = 0
    for eqn in frame.jaxpr.eqns:
        count = max((chosen.get(v, 0) for v in eqn.invars if not isinstance(v, Literal)), default=0)
        count += _count(frame.choices.get(id(eqn)), atom)
        most = max(most, count)
        for var in eqn.outvars:
            if count and _has_units(frame, var, atom):
                chosen[var] = count
    return most


def _count(choice: Choice | None, atom: Atom) -> int:
    return choice.number if choice is not None and atom in normal(choice.axis) else 0


def _has_units(frame: Frame, var: object, atom: Atom) -> bool:
    axes = (*frame.axes.get(var, ()), *axes_of(frame.fact(var)))
    return any(atom is leaf for axis in axes for leaf in leaves_of(axis))
