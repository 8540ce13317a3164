"""Values that are zero at pruned units because the masked parameters are: sums over them need no mask of their own.

The function of the parameters is then the same with or without the mask, whatever the parameters hold, and so are
its derivatives: what flows back to a pruned unit of such a value ends at a masked parameter, or is multiplied
by the zero of another factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxprune.jaxprs.calls import is_inline, kind_of, scan_parts, settled, while_parts
from jaxprune.jaxprs.equations import shape_of, walk
from jaxprune.surgery.inference.axes import Axes
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import Keep

Dims = frozenset[int]  # dimensions along which a value is zero at every pruned unit
_NONE: Dims = frozenset()


class Zeros:
    """Along which dimensions each value of a model is zero at pruned units; of the dimensions with pruned units.

    Args:
      frame: the call of the whole function.
      ins: which of its inputs are masked: they are zero at pruned units of all their dimensions.
      keep: which units may be pruned.
    """

    def __init__(self, frame: Frame, ins: Sequence[bool], keep: Keep):
        self._keep = keep
        self._known: dict[Frame, dict[Any, Dims]] = {}
        masked = zip(frame.jaxpr.invars, ins, strict=True)
        self._call(frame, [self.pruned(frame.of(v)) if is_masked else _NONE for v, is_masked in masked])

    def of(self, frame: Frame, atom: Any, axes: Axes) -> Dims:
        """Those of an operand that is used with these axes."""
        if frame.is_constant(atom):
            return self.pruned(axes) if _is_zero(frame, atom) else _NONE
        return self._known.get(frame, {}).get(atom, _NONE)

    def pruned(self, axes: Axes) -> Dims:
        """The dimensions of which units may be pruned."""
        return frozenset(dim for dim, axis in enumerate(axes) if self._keep.cuts([axis]))

    def _call(self, frame: Frame, ins: Sequence[Dims]) -> list[Dims]:
        known = self._known[frame] = {}
        known.update(zip(frame.jaxpr.invars, ins, strict=True))

        def equation(index: int, eqn: JaxprEqn, given: list[Dims]) -> Sequence[Dims]:
            del given  # they are among the known ones
            outs = [_NONE] * len(eqn.outvars)
            if not all(map(frame.is_constant, eqn.invars)):
                outs = self._equation(frame, index, eqn)
            known.update(zip(eqn.outvars, outs, strict=True))
            return outs

        consts = [_NONE] * len(frame.consts)
        walk(frame.jaxpr, consts, ins, lambda literal: _NONE, equation)
        return [self.of(frame, v, axes) for v, axes in zip(frame.jaxpr.outvars, frame.outs, strict=True)]

    def _equation(self, frame: Frame, index: int, eqn: JaxprEqn) -> Sequence[Dims]:
        axes, outs = frame.ins(eqn), [frame.of(v) for v in eqn.outvars]
        ins = [self.of(frame, v, a) for v, a in zip(eqn.invars, axes, strict=True)]
        if index in frame.calls:
            return self._bodies(frame, index, eqn, ins)
        if not any(map(self._keep.cuts, outs)):
            return [_NONE] * len(outs)
        name = eqn.primitive.name
        if name in _RULES:
            found = _RULES[name](eqn, ins)
        elif name in FROM_ZERO and from_zero(eqn):
            found = self.pruned(outs[0])
        elif name in _PLACED and all(map(self._whole, ins[: _PLACED[name]], axes)):
            if name != "pad" or _is_zero(frame, eqn.invars[1]):
                return list(map(self.pruned, outs))
            found = _NONE
        elif name in _REDUCTIONS:
            gone = eqn.params["axes"]
            # The largest of no units is not zero, and neither need a sum of one of them be.
            found = _NONE if name != "reduce_sum" and self.pruned(axes[0]) & {*gone} else ins[0] - {*gone}
            found = {dim - sum(other < dim for other in gone) for dim in found}
        else:
            found = _NONE
        return [self.pruned(outs[0]) & found, *[_NONE] * (len(outs) - 1)]

    def _whole(self, dims: Dims, axes: Axes) -> bool:
        return self.pruned(axes) <= dims

    def _bodies(self, frame: Frame, index: int, eqn: JaxprEqn, ins: list[Dims]) -> Sequence[Dims]:
        bodies = frame.calls[index]
        match kind_of(eqn):
            case "scan":
                consts, carry, xs = scan_parts(eqn, ins)
                slices = [frozenset(dim - 1 for dim in dims) for dims in xs]
                outs = settled(lambda now: self._call(bodies[0], [*consts, *now, *slices]), carry, _both)
                count = len(carry)
                return [*outs[:count], *(frozenset(dim + 1 for dim in dims) for dims in outs[count:])]
            case "while":
                of_cond, (consts, carry, _) = while_parts(eqn, ins)
                carry = settled(lambda now: self._call(bodies[1], [*consts, *now]), carry, _both)
                self._call(bodies[0], [*of_cond, *carry])
                return carry
            case "cond":
                found = [self._call(body, ins[1:]) for body in bodies]
                return [frozenset.intersection(*dims) for dims in zip(*found, strict=True)]
        if not is_inline(eqn):
            return [_NONE] * len(eqn.outvars)
        outs = self._call(bodies[0], ins)
        if index not in frame.derivatives:
            return outs
        # A derivative rule of the user's need not multiply by the factor that is zero.
        if not all(map(self._whole, ins, frame.ins(eqn))):
            return [_NONE] * len(outs)
        if kind_of(eqn) == "custom_jvp":  # when differentiated, its results are those of the rule
            _, rule = frame.derivatives[index]
            tangents = [_NONE] * (len(rule.jaxpr.invars) - len(ins))
            outs = list(map(_both, outs, self._call(rule, [*ins, *tangents])))
        return outs


# Functions of one operand whose operand is zero at pruned units when the masked model is evaluated.
FROM_ZERO = frozenset(("expm1", "sinh", "tan", "atanh", "log1p", "integer_pow"))


def from_zero(eqn: JaxprEqn) -> bool:
    """Whether one of these functions is finite at zero."""
    return eqn.primitive.name != "integer_pow" or eqn.params["y"] > 0


def _both(a: Dims, b: Dims) -> Dims:
    return a & b


def _is_zero(frame: Frame, atom: Any) -> bool:
    """Whether a constant is the number 0, or an array that is filled with it."""
    if isinstance(atom, Literal):
        return _is_number_zero(atom)
    eqn = frame.makers.get(atom)
    if eqn is None or eqn.primitive.name not in ("broadcast_in_dim", "convert_element_type"):
        return False
    return _is_zero(frame, eqn.invars[0])


def _full(eqn: JaxprEqn, ins: Sequence[Dims], place: int) -> Dims:
    """Dimensions along which an operand of the result's rank is zero, and is not one number for all units."""
    shape, out = shape_of(eqn.invars[place]), shape_of(eqn.outvars[0])
    if not shape:
        return frozenset(range(len(out))) if _is_number_zero(eqn.invars[place]) else _NONE
    return frozenset(dim for dim in ins[place] if shape[dim] == out[dim])


def _is_number_zero(atom: Any) -> bool:
    return isinstance(atom, Literal) and bool(np.all(np.asarray(atom.val) == 0))


def _first(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    return _full(eqn, ins, 0)


def _all(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    return frozenset.intersection(*(_full(eqn, ins, place) for place in range(len(ins))))


def _any(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    return frozenset.union(*(_full(eqn, ins, place) for place in range(len(ins))))


def _cases(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    return frozenset.intersection(*(_full(eqn, ins, place) for place in range(1, len(ins))))


def _broadcast(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    places, (shape, out) = eqn.params["broadcast_dimensions"], map(shape_of, (eqn.invars[0], eqn.outvars[0]))
    return frozenset(places[dim] for dim in ins[0] if shape[dim] == out[places[dim]])


def _transpose(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    return frozenset(to for to, dim in enumerate(eqn.params["permutation"]) if dim in ins[0])


def _gather(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    fill = eqn.params["fill_value"]
    windows = eqn.params["dimension_numbers"]
    skipped = {*windows.collapsed_slice_dims, *windows.operand_batching_dims}
    kept = [dim for dim in range(len(shape_of(eqn.invars[0]))) if dim not in skipped]
    if fill is not None and fill != 0:
        return _NONE
    return frozenset(to for dim, to in zip(kept, windows.offset_dims, strict=True) if dim in ins[0])


def _product(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    contracted, batch = eqn.params["dimension_numbers"]
    found = [i for i, pair in enumerate(zip(*batch, strict=True)) if pair[0] in ins[0] or pair[1] in ins[1]]
    to = len(batch[0])
    for side in range(2):
        for dim in range(len(shape_of(eqn.invars[side]))):
            if dim not in contracted[side] and dim not in batch[side]:
                found += [to] if dim in ins[side] else []
                to += 1
    return frozenset(found)


def _convolution(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    numbers = eqn.params["dimension_numbers"]
    of_batch = {numbers.out_spec[0]} if numbers.lhs_spec[0] in ins[0] else set()
    return frozenset(of_batch | ({numbers.out_spec[1]} if numbers.rhs_spec[0] in ins[1] else set()))


def _cumulative(eqn: JaxprEqn, ins: Sequence[Dims]) -> Dims:
    return ins[0] - {eqn.params["axis"]}


_ODD = """
abs asin asinh atan bessel_i1e ceil conj convert_element_type copy device_put erf erf_inv floor imag neg real
reduce_precision round sharding_constraint layout_constraint mesh_cast reshard relayout sign sin square
stop_gradient tanh
""".split()  # noqa: SIM905

_RULES: Mapping[str, Callable[[JaxprEqn, Sequence[Dims]], Dims]] = MappingProxyType(
    {
        **dict.fromkeys((*_ODD, "div", "rem"), _first),
        **dict.fromkeys(("add", "add_any", "sub", "max", "min", "or", "xor"), _all),
        **dict.fromkeys(("mul", "and"), _any),
        "select_n": _cases,
        "broadcast_in_dim": _broadcast,
        "transpose": _transpose,
        "gather": _gather,
        "dot_general": _product,
        "conv_general_dilated": _convolution,
        "cumsum": _cumulative,
    }
)
_REDUCTIONS = frozenset(("reduce_sum", "reduce_max", "reduce_min", "reduce_or", "reduce_xor"))
# What moves entries, and the number of operands whose entries it moves.
_PLACED: Mapping[str, int | None] = MappingProxyType(
    {
        **dict.fromkeys(
            ("reshape", "squeeze", "slice", "dynamic_slice", "rev", "tile", "split", "unstack"), 1
        ),
        **dict.fromkeys(("pad", "dynamic_update_slice"), 2),
        **dict.fromkeys(("concatenate", "stack"), None),
    }
)
