"""Number of parameters and FLOPs of a model, as a function of the kept units."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

from jaxprune.jaxprs.calls import kind_of
from jaxprune.jaxprs.flops import PRODUCTS, call_flops, product_flops
from jaxprune.surgery.inference.axes import size_of
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.model import Model


def parameters(model: Model, keep: Keep) -> int:
    """Number of entries of all parameter arrays."""
    return sum(math.prod(map(keep.size, axes)) for axes in model.axes.values())


def flops(frame: Frame, keep: Keep) -> int:
    """Floating-point operations of the contractions and convolutions, as `jaxprs.flops` counts them."""
    total = 0
    for index, eqn in enumerate(frame.jaxpr.eqns):
        if index in frame.calls:
            total += call_flops(eqn, [[flops(body, keep)] for body in frame.calls[index]])[0]
        elif eqn.primitive.name in PRODUCTS:
            left, right = frame.ins(eqn)[:2]
            total += product_flops(eqn, left, right, frame.of(eqn.outvars[0]), keep.size)
    return total


def nbytes(model: Model, keep: Keep) -> int:
    """Bytes of all parameter arrays."""
    avals = zip(model.axes.values(), model.traced.avals, strict=True)
    return sum(math.prod(map(keep.size, axes)) * aval.dtype.itemsize for axes, aval in avals)


VALUES = "values"


def parts(frame: Frame, keep: Keep) -> dict[Hashable, Any]:
    """What a runtime spends its time on: the FLOPs of each kind of product, and the entries of all other values.

    Products of the same shapes in the full model are of one kind: those of repeated layers. Calls count as
    `jaxprs.flops` counts them.
    """
    found: dict[Hashable, Any] = {}

    def add(key: Hashable, amount: Any) -> None:
        found[key] = found[key] + amount if key in found else amount

    for index, eqn in enumerate(frame.jaxpr.eqns):
        if index in frame.calls:
            bodies = [parts(body, keep) for body in frame.calls[index]]
            if kind_of(eqn) in ("cond", "linear_solve"):
                bodies = [max(bodies, key=lambda body: sum(v for key, v in body.items() if key != VALUES))]
            for body in bodies:
                for key, amount in body.items():
                    add(key, amount * eqn.params.get("length", 1))
        elif eqn.primitive.name in PRODUCTS:
            left, right = frame.ins(eqn)[:2]
            out = frame.of(eqn.outvars[0])
            key = (eqn.primitive.name, *(tuple(map(size_of, axes)) for axes in (left, right, out)))
            add(key, product_flops(eqn, left, right, out, keep.size))
        else:
            for var in eqn.outvars:
                if not frame.is_constant(var):
                    add(VALUES, math.prod(map(keep.size, frame.of(var))))
    return found
