"""Primitives that act on every element alike: their operands have the same axes."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from jaxprune.surgery.inference.axes import Axes, Axis, Reason, freeze, fresh, size_of, unify
from jaxprune.surgery.inference.rules.rule import Rule, shape_of

_NAMES = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz
complex conj convert_element_type copy cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor
ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p log2 logistic lt
lt_to max min mul mulhi name ne neg nextafter not one_minus_square or polygamma polynomial
population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
layout_constraint mesh_cast relayout reshard sharding_constraint
""".split()  # noqa: SIM905


def pointwise(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    """Unifies the full-size axes; size-1 axes and scalars broadcast implicitly, without an equation in the jaxpr."""
    out: list[Axis] = []
    for dim, size in enumerate(shape_of(eqn)):
        axes = [axes[dim] for axes in ins if axes and size_of(axes[dim]) == size]
        if not axes:
            axes = [fresh(size)]
        for other in axes[1:]:
            unify(axes[0], other, reason)
        out.append(axes[0])
    return [tuple(out)]


def _each(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del eqn, reason
    return list(ins)


def _bitcast(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    (axes,) = ins
    shape = shape_of(eqn)
    if len(shape) == len(axes) and all(size_of(a) == n for a, n in zip(axes, shape, strict=True)):
        return [axes]
    if len(shape) < len(axes):  # several narrow numbers become one
        freeze(axes[-1], reason._replace(text="its numbers are reinterpreted together"))
        return [axes[: len(shape)]]
    return [(*axes, *(fresh(n, reason) for n in shape[len(axes) :]))]


RULES = {
    **dict.fromkeys(_NAMES, Rule(pointwise)),
    "device_put": Rule(_each),
    "with_memory_space_constraint": Rule(_each),
    "optimization_barrier": Rule(_each),
    "bitcast_convert_type": Rule(_bitcast),
}
