"""Reductions, scans along an axis, windows, sorting and decompositions."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxprune.surgery.inference.axes import Axes, Axis, Reason, freeze, fresh, reach, size_of, unify
from jaxprune.surgery.inference.rules.rule import Reduction, Rule, highest, lowest, one, shape_of, zero

_REDUCTIONS = {
    "reduce_sum": zero,
    "reduce_max": lowest,
    "reduce_min": highest,
    "reduce_prod": one,
    "reduce_or": zero,
    "reduce_xor": zero,
}
_CUMULATIVE = {
    "cumsum": zero,
    "cumprod": one,
    "cummax": lowest,
    "cummin": highest,
    "cumlogsumexp": lowest,
}


def _reduce(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    gone = eqn.params["axes"]
    for dim in gone:
        reach(ins[0][dim], reason)
    return [tuple(axis for dim, axis in enumerate(ins[0]) if dim not in gone)]


def _reduces(identity):
    def reduces(eqn: JaxprEqn, ins: Sequence[Axes]) -> list[Reduction]:
        del ins
        return [Reduction(0, tuple(eqn.params["axes"]), identity)]

    return reduces


def _cumulative(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    reach(ins[0][eqn.params["axis"]], reason)
    return [ins[0]]


def _cumulates(identity):
    def reduces(eqn: JaxprEqn, ins: Sequence[Axes]) -> list[Reduction]:
        del ins
        return [Reduction(0, (eqn.params["axis"],), identity)]

    return reduces


def _position_of(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    """argmax: what it gives are positions, which `inference.positions` follows."""
    _freeze_bools(eqn, ins[0], eqn.params["axes"], reason)
    return _reduce(eqn, ins, reason)


def _freeze_bools(eqn: JaxprEqn, axes: Axes, dims: Sequence[int], reason: Reason) -> None:
    """Freezes axes of bools: where the largest is False, that of a removed unit is as large."""
    if jnp.issubdtype(getattr(eqn.invars[0].aval, "dtype", float), jnp.bool_):
        for dim in dims:
            freeze(axes[dim], reason._replace(text=f"{eqn.primitive.name} of bools"))


def _general_reduce(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    gone = eqn.params["dimensions"]
    operands = ins[: len(ins) // 2]  # the rest are scalar starting values
    _unify_all(operands, reason)
    for axes in operands:
        for dim in gone:
            freeze(axes[dim], reason._replace(text="reduced by a function of the user's"))
    return [tuple(a for dim, a in enumerate(axes) if dim not in gone) for axes in operands]


def _sort(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    _unify_all(ins, reason)
    freeze(ins[0][eqn.params["dimension"]], reason._replace(text="sorted"))
    return list(ins)


def _top_k(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    """The largest along an axis, and their positions, which `inference.positions` follows."""
    along = eqn.params.get("axis", -1) % len(ins[0])
    reach(ins[0][along], reason)
    _freeze_bools(eqn, ins[0], (along,), reason)
    return _found(eqn, ins, along, reason._replace(text="the largest, in their order"))


def _top_k_reduces(eqn: JaxprEqn, ins: Sequence[Axes]) -> list[Reduction]:
    return [Reduction(0, (eqn.params.get("axis", -1) % len(ins[0]),), lowest)]


def _approx_top_k(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    along = eqn.params["reduction_dimension"] % len(ins[0])
    why = reason._replace(text=f"{eqn.primitive.name} gives positions on it")
    freeze(ins[0][along], why)
    return _found(eqn, ins, along, why)


def _found(eqn: JaxprEqn, ins: Sequence[Axes], along: int, why: Reason) -> list[Axes]:
    return [
        tuple(fresh(n, why) if dim == along else ins[0][dim] for dim, n in enumerate(shape_of(eqn, i)))
        for i in range(len(eqn.outvars))
    ]


def _window(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    p = eqn.params
    rank = len(ins[0])
    ones = (1,) * rank
    why = reason._replace(text="axis of a window")
    columns = zip(
        p["window_dimensions"],
        p["window_strides"],
        p["padding"],
        p.get("base_dilation") or ones,
        p.get("window_dilation") or ones,
        strict=True,
    )
    untouched = [
        size == stride == base == 1 and tuple(padding) == (0, 0) for size, stride, padding, base, _ in columns
    ]
    operands = [axes for axes in ins if len(axes) == rank]
    _unify_all(operands, reason)
    out: list[Axis] = []
    for dim, size in enumerate(shape_of(eqn)):
        if not untouched[dim]:
            freeze(operands[0][dim], why)
        out.append(operands[0][dim] if untouched[dim] else fresh(size, why))
    return [tuple(out)] * len(eqn.outvars)


def _select_and_scatter_add(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    source, operand = ins
    why = reason._replace(text="axis of a window")
    for dim, (size, stride) in enumerate(
        zip(eqn.params["window_dimensions"], eqn.params["window_strides"], strict=True)
    ):
        if size == stride == 1 and size_of(source[dim]) == size_of(operand[dim]):
            unify(source[dim], operand[dim], reason)
        else:
            freeze(source[dim], why)
            freeze(operand[dim], why)
    return [operand]


def _matrices(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    """Decompositions and solvers: the last two axes are frozen, the leading axes are a batch."""
    why = reason._replace(text=f"axis of the matrix of {eqn.primitive.name}")
    batch = ins[0][:-2]
    for axes in ins:
        for a, b in zip(batch, axes[: len(batch)], strict=False):
            unify(a, b, reason)
        for axis in axes[len(batch) :]:
            freeze(axis, why)
    return [
        (*batch, *(fresh(n, why) for n in shape_of(eqn, i)[len(batch) :])) for i in range(len(eqn.outvars))
    ]


def _solve(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    """Solvers with a matrix: each right side is solved separately."""
    right = ins[-1]
    batch = right[:-2]
    why = reason._replace(text=f"axis of the matrix of {eqn.primitive.name}")
    freeze(right[-2 if eqn.params.get("left_side", True) else -1], why)
    for axes in ins[:-1]:
        for a, b in zip(axes, batch, strict=False):
            unify(a, b, reason)
        for axis in axes[len(batch) :]:
            freeze(axis, why)
    return [right]


def _permutation(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    """Pivots as a permutation: the leading axes are a batch."""
    freeze(ins[0][-1], reason)
    return [(*ins[0][:-1], fresh(shape_of(eqn)[-1], reason))]


def _fft(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    rank = len(eqn.params["fft_lengths"])
    why = reason._replace(text="axis of a Fourier transform")
    for axis in ins[0][-rank:]:
        freeze(axis, why)
    return [(*ins[0][:-rank], *(fresh(n, why) for n in shape_of(eqn)[-rank:]))]


def _unify_all(operands: Sequence[Axes], reason: Reason) -> None:
    for axes in operands[1:]:
        for a, b in zip(operands[0], axes, strict=True):
            unify(a, b, reason)


RULES = {
    **{name: Rule(_reduce, reduces=_reduces(identity)) for name, identity in _REDUCTIONS.items()},
    "reduce_and": Rule(_reduce, reduces=_reduces(highest)),
    **{name: Rule(_cumulative, reduces=_cumulates(identity)) for name, identity in _CUMULATIVE.items()},
    "argmax": Rule(_position_of, reduces=_reduces(lowest)),
    "argmin": Rule(_position_of, reduces=_reduces(highest)),
    "reduce": Rule(_general_reduce),
    "sort": Rule(_sort),
    "top_k": Rule(_top_k, reduces=_top_k_reduces),
    "approx_top_k": Rule(_approx_top_k),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"), Rule(_window)
    ),
    **dict.fromkeys(("select_and_gather_add",), Rule(_window)),
    "select_and_scatter_add": Rule(_select_and_scatter_add),
    **dict.fromkeys(
        ("cholesky", "eig", "eigh", "householder_product", "lu", "qr", "svd"),
        Rule(_matrices),
    ),
    **dict.fromkeys(("triangular_solve", "tridiagonal_solve"), Rule(_solve)),
    "lu_pivots_to_permutation": Rule(_permutation),
    "fft": Rule(_fft),
}
