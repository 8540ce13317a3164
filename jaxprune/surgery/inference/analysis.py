"""Inference: one pass over a jaxpr that expresses every axis of every value in the algebra of axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from jaxprune.jaxprs import Source, shape_of
from jaxprune.jaxprs.calls import Body, Kind, bodies_of, kind_of, scan_parts, while_parts
from jaxprune.jaxprs.derivatives import derivative_of
from jaxprune.surgery.inference.axes import Axes, Reason, freeze, fresh, size_of, unify
from jaxprune.surgery.inference.frames import Frame, unknown
from jaxprune.surgery.inference.position_uses import COMPARISONS, infer_with_positions
from jaxprune.surgery.inference.positions import freeze_positions, unified
from jaxprune.surgery.inference.rules import RULES

# Integers that count positions (an iota, an index table): comparing them with data makes one-hots of the data.
_POSITIONS_PASS = frozenset(
    {
        *("add", "sub", "mul", "rem", "div", "max", "min", "neg", "select_n", "copy", "convert_element_type"),
        *("broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "concatenate", "stop_gradient"),
    }
)
_INDICATOR = "compared with positions (a one-hot)"
_CARRIED = "are carried through a loop"

# Maximum nesting of derivative rules that are followed: a rule may call the function it belongs to, so that second
# derivatives need its rule again. At greater depth the function is differentiated as it is written.
DERIVATIVE_DEPTH = 2


def infer(
    jaxpr: Jaxpr,
    ins: Sequence[Axes],
    consts: Sequence[Any] = (),
    positions: Sequence[bool] = (),
    depth: int = 0,
    caller: Source | None = None,
    constant: Sequence[Callable[[], Any] | None] = (),
    facts: Sequence[Any] = (),
) -> Frame:
    """Infers the axes of every value of a jaxpr from the axes of its inputs.

    Args:
      jaxpr: the jaxpr.
      ins: axes of its inputs.
      consts: values of its constants.
      positions: which inputs are integers that count positions.
      depth: number of derivative rules that this call is nested in.
      caller: the equation that calls the jaxpr.
      constant: for each input that depends on constants alone and is passed whole, a function that returns its value.
      facts: for each input what is known about it as positions on an axis (`positions.Fact`), or None.

    Returns:
      The frame of the call.
    """
    frame = Frame(jaxpr, consts, caller)
    frame.axes.update(zip(jaxpr.invars, ins, strict=True))
    frame.positions.update(v for v, is_position in zip(jaxpr.invars, positions, strict=False) if is_position)
    frame.facts.update((v, fact) for v, fact in zip(jaxpr.invars, facts, strict=False) if fact is not None)
    for var, origin in zip(jaxpr.invars, constant, strict=False):
        if origin is not None:
            frame.add_constant(var, origin)
    for index, eqn in enumerate(jaxpr.eqns):
        if all(map(frame.is_constant, eqn.invars)):
            frame.makers.update(dict.fromkeys(eqn.outvars, eqn))
        else:
            outs = _infer_equation(frame, index, eqn, depth)
            frame.axes.update(zip(eqn.outvars, outs, strict=True))
    return frame


def unify_all(a: Sequence[Axes], b: Sequence[Axes], reason: Reason) -> None:
    for x, y in zip(a, b, strict=True):
        for p, q in zip(x, y, strict=True):
            unify(p, q, reason)


def _infer_equation(frame: Frame, index: int, eqn: JaxprEqn, depth: int) -> Sequence[Axes]:
    name = eqn.primitive.name
    ins = frame.ins(eqn)
    reason = Reason(name, frame.source(eqn))
    kind = kind_of(eqn)
    if kind is not None:
        return _CALLS[kind](frame, index, eqn, ins, reason, depth)
    rule = RULES.get(name)
    if rule is None:
        freeze_positions(map(frame.fact, eqn.invars), reason, f"are used in {name!r}, which has no rule")
        return _opaque(eqn, ins, reason._replace(text=f"no rule for primitive {name!r}"))

    def by_rule(ins: Sequence[Axes]) -> list[Axes]:
        outs = None
        if rule.infer_known is not None:
            outs = rule.infer_known(eqn, ins, lambda place: frame.value(eqn.invars[place]), reason)
        return rule.infer(eqn, ins, reason) if outs is None else outs

    try:
        _keep_one_hots(frame, eqn, ins, reason)
        outs = infer_with_positions(frame, eqn, ins, reason, by_rule)
        _track_positions(frame, eqn, ins, reason)
    except Exception as error:  # a form of the primitive that the rule does not know
        return _opaque(eqn, ins, reason._replace(text=f"the rule of {name!r} failed ({error})"))
    if any(tuple(map(size_of, a)) != shape_of(v) for v, a in zip(eqn.outvars, outs, strict=True)):
        return _opaque(eqn, ins, reason._replace(text=f"the rule of {name!r} does not fit"))
    return outs


def _opaque(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    for axes in ins:
        for axis in axes:
            freeze(axis, reason)
    return [unknown(v.aval, reason) for v in eqn.outvars]


def _track_positions(frame: Frame, eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> None:
    name = eqn.primitive.name
    of_positions = [_is_position(frame, v) for v in eqn.invars]
    if name in _POSITIONS_PASS and any(of_positions):
        frame.positions.update(v for v in eqn.outvars if _is_integer(v.aval))
    elif name in COMPARISONS and id(eqn) not in frame.routed:
        why = reason._replace(text=_INDICATOR)
        for axes, is_position in zip(ins, of_positions, strict=True):
            if is_position:
                for axis in axes:
                    freeze(axis, why)


def _is_integer(array: Any) -> bool:
    return jnp.issubdtype(getattr(array, "dtype", jnp.float32), jnp.integer)


def _is_position(frame: Frame, atom: Any) -> bool:
    if frame.is_constant(atom):
        return _is_integer(atom.aval) and len(shape_of(atom)) > 0
    return atom in frame.positions


def _keep_one_hots(frame: Frame, eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> None:
    """Rows of an identity matrix that are looked up by data are one-hots of the data: all of them are kept.

    Those that are looked up by positions on an axis are one-hots of units of this axis.
    """
    if eqn.primitive.name not in ("gather", "dynamic_slice") or not frame.is_constant(eqn.invars[0]):
        return
    shape = shape_of(eqn.invars[0])
    if len(shape) == 2 and shape[0] == shape[1]:
        table = frame.value(eqn.invars[0])
        if table is None or not np.all(np.count_nonzero(np.asarray(table), axis=1) == 1):
            return
        if any(map(frame.fact, eqn.invars[1:])) and np.all(np.diagonal(np.asarray(table)) != 0):
            unify(ins[0][0], ins[0][1], reason)
            return
        for axis in ins[0]:
            freeze(axis, reason._replace(text=_INDICATOR))


def _body(
    frame: Frame,
    index: int,
    eqn: JaxprEqn,
    called: Body,
    ins: Sequence[Axes],
    depth: int,
    constants: Sequence[Any] = (),
    positions: Sequence[bool] = (),
    facts: Sequence[Any] = (),
) -> Frame:
    """The frame of a body that the equation at `index` calls, and the operands that the body may take whole."""
    whole = [partial(frame.value, v) if frame.is_constant(v) else None for v in constants]
    body = infer(called.jaxpr, ins, called.consts, positions, depth, frame.source(eqn), whole, facts)
    frame.calls[index] = (*frame.calls.get(index, ()), body)
    return body


def _call(frame, index, eqn, ins, reason, depth):
    """jit, remat and closed calls: the inputs and outputs of the body are values of the caller."""
    del reason
    frame.whole[index] = tuple(map(frame.is_constant, eqn.invars))
    positions = [_is_position(frame, v) for v in eqn.invars]
    facts = list(map(frame.fact, eqn.invars))
    body = _body(frame, index, eqn, _only_body(eqn), ins, depth, eqn.invars, positions, facts)
    _return_facts(frame, eqn.outvars, map(body.fact, body.jaxpr.outvars))
    for outer, inner in zip(eqn.outvars, body.jaxpr.outvars, strict=True):
        if _is_position(body, inner):
            frame.positions.add(outer)
        if passes_whole(eqn) and body.is_constant(inner):
            frame.add_constant(outer, partial(body.value, inner))
    return body.outs


def _return_facts(frame: Frame, outvars: Sequence[Any], facts: Iterable[Any]) -> None:
    frame.facts.update((v, fact) for v, fact in zip(outvars, facts, strict=True) if fact is not None)


def _only_body(eqn: JaxprEqn) -> Body:
    (body,) = bodies_of(eqn)
    return body


def passes_whole(eqn: JaxprEqn) -> bool:
    """Whether a call returns constants whole; other calls cut them at their boundary."""
    return kind_of(eqn) == "plain"


def _custom(frame, index, eqn, ins, reason, depth):
    """custom_jvp and custom_vjp: the derivative rule must agree with the call about every axis."""
    facts = list(map(frame.fact, eqn.invars))
    body = _body(frame, index, eqn, _only_body(eqn), ins, depth, facts=facts)
    outs, of_outs = body.outs, list(map(body.fact, body.jaxpr.outvars))
    _return_facts(frame, eqn.outvars, of_outs)
    if depth >= DERIVATIVE_DEPTH:
        return outs
    try:
        derivative = derivative_of(eqn)
    except Exception as error:  # a user's rule may raise anything; without it nothing is known
        return _opaque(eqn, ins, reason._replace(text=f"a derivative rule that can't be traced ({error})"))
    directions = (
        [ins[i] for i in derivative.inexact_in]
        if kind_of(eqn) == "custom_jvp"
        else [outs[i] for i in derivative.inexact_out]
    )
    rule = infer(
        derivative.closed.jaxpr,
        [*ins, *directions],
        derivative.closed.consts,
        (),
        depth + 1,
        frame.source(eqn),
        facts=facts,
    )
    freeze_positions(map(rule.fact, rule.jaxpr.outvars), reason, "are results of a derivative rule")
    results = (
        [*outs, *(outs[i] for i in derivative.inexact_out)]
        if kind_of(eqn) == "custom_jvp"
        else [ins[i] for i in derivative.inexact_in]
    )
    unify_all(rule.outs, results, reason)
    frame.derivatives[index] = (derivative, rule)
    return outs


def _scan(frame, index, eqn, ins, reason, depth):
    consts, carry, xs = scan_parts(eqn, ins)
    why = reason._replace(text="scanned over")
    for axes in xs:
        freeze(axes[0], why)
    frame.whole[index] = _whole(frame, eqn, len(consts))
    entries = [*consts, *carry, *(axes[1:] for axes in xs)]
    of_consts, of_carry, of_xs = scan_parts(eqn, list(map(frame.fact, eqn.invars)))
    freeze_positions(of_carry, reason, _CARRIED)
    facts = [*of_consts, *(None for _ in carry), *of_xs]
    whole = scan_parts(eqn, eqn.invars).consts
    body = _body(frame, index, eqn, _only_body(eqn), entries, depth, whole, facts=facts)
    found = list(map(body.fact, body.jaxpr.outvars))
    freeze_positions(found[: len(carry)], reason, _CARRIED)
    _return_facts(frame, eqn.outvars[len(carry) :], found[len(carry) :])
    unify_all(body.outs[: len(carry)], carry, reason)
    return [*carry, *((fresh(eqn.params["length"], why), *axes) for axes in body.outs[len(carry) :])]


def _while(frame, index, eqn, ins, reason, depth):
    (_, carry, _), (cond, body) = while_parts(eqn, ins)[1], bodies_of(eqn)
    freeze_positions(map(frame.fact, eqn.invars), reason, _CARRIED)
    of_cond, (of_body, _, _) = while_parts(eqn, eqn.invars)
    frame.whole[index] = _whole(frame, eqn, len(of_cond) + len(of_body))
    _body(frame, index, eqn, cond, cond.of(ins), depth, of_cond)
    of_step = _body(frame, index, eqn, body, body.of(ins), depth, of_body)
    freeze_positions(map(of_step.fact, of_step.jaxpr.outvars), reason, _CARRIED)
    unify_all(of_step.outs, carry, reason)
    return carry


def _cond(frame, index, eqn, ins, reason, depth):
    frame.whole[index] = tuple(map(frame.is_constant, eqn.invars))
    facts = list(map(frame.fact, eqn.invars))
    freeze_positions(facts[:1], reason, "choose a branch")
    first, *others = branches = [
        _body(frame, index, eqn, b, b.of(ins), depth, b.of(eqn.invars), facts=b.of(facts))
        for b in bodies_of(eqn)
    ]
    results = zip(*(map(branch.fact, branch.jaxpr.outvars) for branch in branches), strict=True)
    _return_facts(frame, eqn.outvars, [unified(of_result, reason) for of_result in results])
    for branch in others:
        unify_all(first.outs, branch.outs, reason)
    return first.outs


def _linear_solve(frame, index, eqn, ins, reason, depth):
    """The products and solvers, each with its own constants, map arrays like the right sides to arrays like these."""
    right = ins[sum(eqn.params["const_lengths"]) :]
    freeze_positions(map(frame.fact, eqn.invars), reason, "are used in a solver")
    for body in bodies_of(eqn):
        unify_all(_body(frame, index, eqn, body, body.of(ins), depth).outs, right, reason)
    return right


def _whole(frame: Frame, eqn: JaxprEqn, count: int) -> tuple[bool, ...]:
    """Which operands are constants that the bodies take whole: the constants among the first `count` operands."""
    return tuple(i < count and frame.is_constant(v) for i, v in enumerate(eqn.invars))


_CALLS: Mapping[Kind, Callable] = {
    **dict.fromkeys(("plain", "remat", "custom"), _call),
    **dict.fromkeys(("custom_jvp", "custom_vjp"), _custom),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "linear_solve": _linear_solve,
}
