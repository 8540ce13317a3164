"""Inference: one pass over a jaxpr that gives every axis of every value its place in the algebra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from jaxprune.jax_compat import CUSTOM_DERIVATIVES, PLAIN_CALLS, REMATERIALIZED, body_of, opened, scan_counts
from jaxprune.surgery.axes import Axes, Reason, freeze, fresh, leaves_of, size_of, unify
from jaxprune.surgery.rules import RULES
from jaxprune.tracing import Source, shape_of
from jaxprune.tracing.derivatives import Derivative, derivative_of

# Integers that count positions (an iota, an index table): comparing them makes one-hots and causal masks.
_POSITIONS_PASS = frozenset(
    {
        *("add", "sub", "mul", "rem", "div", "max", "min", "neg", "select_n", "copy", "convert_element_type"),
        *("broadcast_in_dim", "reshape", "squeeze", "transpose", "slice", "concatenate", "stop_gradient"),
    }
)
_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"))
_INDICATOR = "compared with positions (a one-hot or a causal mask)"

# How deep derivative rules are followed: a rule may call the function it belongs to, so that second
# derivatives need its rule again. Beyond that the function is differentiated as it is written.
DERIVATIVE_DEPTH = 2


class Frame:
    """One call of a jaxpr: the axes of its values and the frames of the calls inside it.

    Shared jaxprs get a frame a call, because each call may have other axes. Values that follow from constants
    alone (tables, positions, masks, zeros) are never cut where they are made: each use has axes of its own,
    so that a table couples nothing but what meets in one equation.
    """

    __slots__ = ("axes", "caller", "calls", "constant", "consts", "derivatives", "jaxpr", "positions", "uses")

    def __init__(self, jaxpr: Jaxpr, consts: Sequence[Any], caller: Source | None = None):
        self.jaxpr = jaxpr
        self.caller = caller
        self.consts = tuple(consts)
        self.axes: dict[Any, Axes] = {}
        self.calls: dict[int, tuple[Frame, ...]] = {}
        self.constant: set[Var] = set(jaxpr.constvars)
        self.derivatives: dict[int, tuple[Derivative, Frame]] = {}
        self.positions: set[Var] = set()
        self.uses: dict[tuple[int | None, int], Axes] = {}  # (id of an equation or None, place) -> axes

    def of(self, atom: Any) -> Axes:
        """The axes of a variable where it is made."""
        if atom not in self.axes:
            self.axes[atom] = unknown(atom.aval)
        return self.axes[atom]

    def is_constant(self, atom: Any) -> bool:
        """Whether a value follows from constants alone."""
        return isinstance(atom, Literal) or atom in self.constant

    def ins(self, eqn: JaxprEqn) -> list[Axes]:
        """The axes of an equation's operands."""
        return self._used(id(eqn), eqn.invars)

    @property
    def outs(self) -> list[Axes]:
        return self._used(None, self.jaxpr.outvars)

    def _used(self, by: int | None, atoms: Sequence[Any]) -> list[Axes]:
        axes = []
        for place, atom in enumerate(atoms):
            if self.is_constant(atom):
                key = by, place
                if key not in self.uses:
                    literal = isinstance(atom, Literal)
                    self.uses[key] = unknown(atom.aval) if literal else _copied(self.of(atom))
                axes.append(self.uses[key])
            else:
                axes.append(self.of(atom))
        return axes

    def source(self, eqn: JaxprEqn) -> Source:
        return Source(eqn, self.caller)


def unknown(aval: Any, reason: Reason | None = None) -> Axes:
    """Axes equal to no other yet."""
    return tuple(fresh(size, reason) for size in getattr(aval, "shape", ()))


def infer(
    jaxpr: Jaxpr,
    ins: Sequence[Axes],
    consts: Sequence[Any] = (),
    positions: Sequence[bool] = (),
    depth: int = 0,
    caller: Source | None = None,
    constant: Sequence[bool] = (),
) -> Frame:
    """Infers the axes of every value of a jaxpr from those of its inputs.

    Args:
      jaxpr: the jaxpr.
      ins: axes of its inputs.
      consts: values of its constants.
      positions: which inputs are integers that count positions.
      depth: how many derivative rules lead here.
      caller: the equation that calls it.
      constant: which inputs follow from constants alone and come in whole.

    Returns:
      The frame of the call.
    """
    frame = Frame(jaxpr, consts, caller)
    frame.axes.update(zip(jaxpr.invars, ins, strict=True))
    frame.positions.update(v for v, is_position in zip(jaxpr.invars, positions, strict=False) if is_position)
    frame.constant.update(v for v, is_constant in zip(jaxpr.invars, constant, strict=False) if is_constant)
    for index, eqn in enumerate(jaxpr.eqns):
        outs = _infer_equation(frame, index, eqn, depth)
        frame.axes.update(zip(eqn.outvars, outs, strict=True))
        if all(map(frame.is_constant, eqn.invars)):
            frame.constant.update(eqn.outvars)
    return frame


def unify_all(a: Sequence[Axes], b: Sequence[Axes], reason: Reason) -> None:
    for x, y in zip(a, b, strict=True):
        for p, q in zip(x, y, strict=True):
            unify(p, q, reason)


def _infer_equation(frame: Frame, index: int, eqn: JaxprEqn, depth: int) -> Sequence[Axes]:
    name = eqn.primitive.name
    ins = frame.ins(eqn)
    reason = Reason(name, frame.source(eqn))
    if name in CALLS:
        return CALLS[name](frame, index, eqn, ins, reason, depth)
    rule = RULES.get(name)
    if rule is None:
        return _opaque(eqn, ins, reason._replace(text=f"no rule for primitive {name!r}"))
    _track_positions(frame, eqn, ins, reason)
    try:
        outs = rule.infer(eqn, ins, reason)
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
    elif name in _COMPARISONS:
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


def _copied(axes: Axes) -> Axes:
    """Axes of a constant for one use: what tells positions apart there (a one-hot table) stays whole."""
    return tuple(
        fresh(
            size_of(axis),
            next((a.frozen for a in leaves_of(axis) if a.frozen and a.frozen.text == _INDICATOR), None),
        )
        for axis in axes
    )


def _call(frame, index, eqn, ins, reason, depth):
    """jit, remat and closed calls: the body's values are the caller's."""
    del reason
    jaxpr, consts = opened(body_of(eqn))
    positions = [_is_position(frame, v) for v in eqn.invars]
    whole = passes_whole(eqn)
    constant = [whole and frame.is_constant(v) for v in eqn.invars]
    body = infer(jaxpr, ins, consts, positions, depth, frame.source(eqn), constant)
    frame.calls[index] = (body,)
    for outer, inner in zip(eqn.outvars, jaxpr.outvars, strict=True):
        if _is_position(body, inner):
            frame.positions.add(outer)
        if whole and body.is_constant(inner):
            frame.constant.add(outer)
    return body.outs


def passes_whole(eqn: JaxprEqn) -> bool:
    """Whether a call takes and gives constants whole; others cut them at their border."""
    return eqn.primitive.name in PLAIN_CALLS


def _custom(frame, index, eqn, ins, reason, depth):
    """custom_jvp and custom_vjp: the derivative rule must agree with the call about every axis."""
    outs = _call(frame, index, eqn, ins, reason, depth)
    if depth >= DERIVATIVE_DEPTH:
        return outs
    try:
        derivative = derivative_of(eqn)
    except Exception as error:  # a user's rule may raise anything; without it nothing is known
        return _opaque(eqn, ins, reason._replace(text=f"a derivative rule that can't be traced ({error})"))
    directions = (
        [ins[i] for i in derivative.inexact_in]
        if eqn.primitive.name == "custom_jvp_call"
        else [outs[i] for i in derivative.inexact_out]
    )
    rule = infer(
        derivative.closed.jaxpr,
        [*ins, *directions],
        derivative.closed.consts,
        (),
        depth + 1,
        frame.source(eqn),
    )
    results = (
        [*outs, *(outs[i] for i in derivative.inexact_out)]
        if eqn.primitive.name == "custom_jvp_call"
        else [ins[i] for i in derivative.inexact_in]
    )
    unify_all(rule.outs, results, reason)
    frame.derivatives[index] = (derivative, rule)
    return outs


def _scan(frame, index, eqn, ins, reason, depth):
    p = eqn.params
    n_consts, n_carry = scan_counts(eqn)
    consts, carry, xs = ins[:n_consts], ins[n_consts : n_consts + n_carry], ins[n_consts + n_carry :]
    why = reason._replace(text="scanned over")
    for axes in xs:
        freeze(axes[0], why)
    jaxpr, body_consts = opened(p["jaxpr"])
    body = infer(
        jaxpr, [*consts, *carry, *(axes[1:] for axes in xs)], body_consts, (), depth, frame.source(eqn)
    )
    frame.calls[index] = (body,)
    unify_all(body.outs[:n_carry], carry, reason)
    return [*carry, *((fresh(p["length"], why), *axes) for axes in body.outs[n_carry:])]


def _while(frame, index, eqn, ins, reason, depth):
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    cond_consts, body_consts, carry = ins[:n_cond], ins[n_cond : n_cond + n_body], ins[n_cond + n_body :]
    cond_jaxpr, cond_closed = opened(p["cond_jaxpr"])
    body_jaxpr, body_closed = opened(p["body_jaxpr"])
    cond = infer(cond_jaxpr, [*cond_consts, *carry], cond_closed, (), depth, frame.source(eqn))
    body = infer(body_jaxpr, [*body_consts, *carry], body_closed, (), depth, frame.source(eqn))
    frame.calls[index] = (cond, body)
    unify_all(body.outs, carry, reason)
    return carry


def _cond(frame, index, eqn, ins, reason, depth):
    branches = tuple(
        infer(*_with_ins(branch, ins[1:]), (), depth, frame.source(eqn)) for branch in eqn.params["branches"]
    )
    frame.calls[index] = branches
    for branch in branches[1:]:
        unify_all(branches[0].outs, branch.outs, reason)
    return branches[0].outs


def _with_ins(branch: ClosedJaxpr, ins: Sequence[Axes]) -> tuple[Jaxpr, Sequence[Axes], Sequence[Any]]:
    jaxpr, consts = opened(branch)
    return jaxpr, ins, consts


CALLS = {
    **dict.fromkeys((*PLAIN_CALLS, *REMATERIALIZED), _call),
    **dict.fromkeys(CUSTOM_DERIVATIVES, _custom),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
}
