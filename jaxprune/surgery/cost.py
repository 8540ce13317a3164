"""Number of parameters and FLOPs of a model, as a function of the kept units."""

from __future__ import annotations

import math

from jaxprune.jaxprs.flops import PRODUCTS, call_flops, product_flops
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
