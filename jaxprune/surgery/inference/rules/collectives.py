"""Sums, maxima and exchanges over named axes, and over those that a batching transformation made positional."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from jaxprune.surgery.inference.axes import Axes, Reason, reach
from jaxprune.surgery.inference.rules.rule import Reduction, Rule, highest, lowest, zero


def _positional(eqn: JaxprEqn) -> tuple[int, ...]:
    return tuple(axis for axis in eqn.params["axes"] if isinstance(axis, int))


def _over_axes(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    gone = _positional(eqn)
    for axes in ins:
        for dim in gone:
            reach(axes[dim], reason)
    return [tuple(axis for dim, axis in enumerate(axes) if dim not in gone) for axes in ins]


def _reduces(identity):
    def reduces(eqn: JaxprEqn, ins: Sequence[Axes]) -> list[Reduction]:
        return [Reduction(i, _positional(eqn), identity) for i in range(len(ins))]

    return reduces


def _each(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del eqn, reason
    return list(ins)


RULES = {
    "psum": Rule(_over_axes, reduces=_reduces(zero)),
    "pmax": Rule(_over_axes, reduces=_reduces(lowest)),
    "pmin": Rule(_over_axes, reduces=_reduces(highest)),
    **dict.fromkeys(("ppermute", "psum_invariant", "pvary"), Rule(_each)),
}
