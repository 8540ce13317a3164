"""Parameters and FLOPs of a model as a function of what is kept."""

from __future__ import annotations

import math

from jaxprune.surgery.frames import Frame
from jaxprune.surgery.kept import Keep
from jaxprune.surgery.model import Model
from jaxprune.tracing import contracted_dims


def parameters(model: Model, keep: Keep) -> int:
    """Number of entries of all parameter arrays."""
    return sum(math.prod(map(keep.size, axes)) for axes in model.axes.values())


def flops(frame: Frame, keep: Keep) -> int:
    """Floating-point operations of the contractions and convolutions, two a multiply-add.

    A loop without a static length counts once, a conditional as its largest branch, a linear solver as its
    most expensive part.
    """
    total = 0
    for index, eqn in enumerate(frame.jaxpr.eqns):
        name = eqn.primitive.name
        if index in frame.calls:
            inner = [flops(body, keep) for body in frame.calls[index]]
            total += (
                max(inner)
                if name in ("cond", "custom_linear_solve")
                else sum(inner) * eqn.params.get("length", 1)
            )
        elif name in ("dot_general", "ragged_dot_general"):
            contract, of_groups = contracted_dims(eqn)
            left = frame.ins(eqn)[0]
            out = math.prod(map(keep.size, frame.of(eqn.outvars[0])[of_groups:]))
            total += 2 * out * math.prod(keep.size(left[dim]) for dim in contract)
        elif name == "conv_general_dilated":
            kernel = frame.ins(eqn)[1]
            features_out = eqn.params["dimension_numbers"].rhs_spec[0]
            window = math.prod(keep.size(axis) for dim, axis in enumerate(kernel) if dim != features_out)
            total += 2 * math.prod(map(keep.size, frame.of(eqn.outvars[0]))) * window
    return total
