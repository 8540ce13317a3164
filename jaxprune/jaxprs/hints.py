"""Facts about the values of a jaxpr if some of its inputs are known numbers.

A value is known, or there are up to two facts about it: that it is zero, and that it equals input i. Both facts are
bools, which may be traced: they then depend on the known numbers. The result of an operation without a rule for its
operands is unknown, so no false fact is stated (0 * inf is taken as 0).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from jaxprune.jaxprs.calls import Body, bodies_of, is_inline, kind_of, scan_parts
from jaxprune.jaxprs.equations import bind, walk
from jaxprune.jaxprs.known import (
    Hint,
    Known,
    Value,
    all_equal,
    all_of,
    both,
    constant,
    either,
    is_one,
    is_plain,
    is_zero,
    negated,
    same_of,
)

_LARGEST_RESULT = 1 << 12  # entries: larger results are not computed


def evaluate(jaxpr: Jaxpr, consts: Sequence[Value], args: Sequence[Value]) -> list[Value]:
    """The facts about the results."""
    return walk(jaxpr, consts, args, lambda literal: Known(literal.val), _equation)


def _equation(index: int, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
    del index
    name, kind = eqn.primitive.name, kind_of(eqn)
    if is_inline(eqn):
        return _inside(bodies_of(eqn)[0], ins)
    if kind == "cond":
        return _cond(eqn, ins)
    if all(isinstance(x, Known) for x in ins):
        computed = _computed(eqn, [x.value for x in ins if isinstance(x, Known)])
        if computed is not None:
            return computed
    if kind == "scan" and any(isinstance(x, Hint) and x.same for x in ins):
        return _scan(eqn, ins)
    if name in _PARTWISE:
        return [Hint(is_zero(x), same_of(x)) for x in ins]
    if name == "is_finite":
        return [Known(np.True_)]  # the facts are about a training without NaN and infinities
    if len(eqn.outvars) != 1:
        return [Hint(is_zero(ins[0]) if name == "split" else False) for _ in eqn.outvars]
    if name == "select_n":
        return [_select(ins[0], ins[1:])]
    return [Hint(_zero_result(name, eqn, ins), _same_result(name, eqn, ins))]


def _inside(body: Body, ins: list[Value]) -> list[Value]:
    return evaluate(body.jaxpr, [constant(c) for c in body.consts], ins)


def _computed(eqn: JaxprEqn, values: list[Any]) -> list[Value] | None:
    """The results from known operands; None if they can't be computed, or are too large."""
    name = eqn.primitive.name
    if eqn.effects or not all(is_plain(v.aval) for v in (*eqn.invars, *eqn.outvars)):
        return None
    shapes = [v.aval.shape for v in eqn.invars]
    whole = all(np.shape(value) == shape for value, shape in zip(values, shapes, strict=True))
    if name in _SPREADS and not np.ndim(values[0]):
        return [Known(values[0])]  # one number everywhere remains one number everywhere
    if name in _EXTREMES and not whole and not np.ndim(values[0]) and math.prod(shapes[0]):
        return [Known(values[0])]
    if not whole and all(not np.ndim(value) for value in values) and name in _POINTWISE:
        return [Known(x) for x in _bind(eqn, values)]
    if any(math.prod(v.aval.shape) > _LARGEST_RESULT for v in eqn.outvars):
        return None
    if not whole:
        if any(math.prod(shape) > _LARGEST_RESULT for shape in shapes):
            return None
        values = [jnp.broadcast_to(value, shape) for value, shape in zip(values, shapes, strict=True)]
    return [Known(x) for x in _bind(eqn, values)]


def _bind(eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    return bind(eqn, [jnp.asarray(value) for value in values])


def _zero_result(name: str, eqn: JaxprEqn, ins: list[Value]) -> Any:
    if not ins:
        return False
    if name in _ZERO_FROM_FIRST:
        return is_zero(ins[0])
    if name == "integer_pow":
        return is_zero(ins[0]) if eqn.params["y"] > 0 else False
    if name in _ZERO_FROM_ANY:
        return functools.reduce(either, map(is_zero, ins))
    if name in _ZERO_FROM_ALL:
        return all_of([is_zero(x) for x in ins])
    return False


def _same_result(name: str, eqn: JaxprEqn, ins: list[Value]) -> tuple[int, Any] | None:
    same = [same_of(x) for x in ins]
    if name in _IDENTITIES:
        return same[0]
    if name == "convert_element_type":
        old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
        # A conversion to a wider type and back loses nothing. Whether a narrow value came from a wider one is not
        # known here: a parameter that was rounded on the way still equals itself in the narrow type.
        is_float = jnp.issubdtype(old, jnp.floating) and jnp.issubdtype(new, jnp.floating)
        return same[0] if is_float and jnp.promote_types(old, new) in (old, new) else None
    if len(ins) != 2 or name not in ("add", "add_any", "sub", "mul", "div"):
        return None
    neutral = is_one if name in ("mul", "div") else is_zero
    for one, other in ((0, 1), (1, 0)):
        if same[one] is not None and (one == 0 or name in ("add", "add_any", "mul")):
            return same[one][0], both(same[one][1], neutral(ins[other]))  # pyright: ignore[reportOptionalSubscript]
    return None


def _select(which: Value, cases: list[Value]) -> Value:
    """`select_n`; an unknown choice of an input or zeros counts as the input: such an entry is pruned, not trained."""
    if isinstance(which, Known) and not np.ndim(which.value):
        return _chosen(which.value, cases)
    zero = all_of([is_zero(x) for x in cases])
    inputs = {same[0] for same in map(same_of, cases) if same is not None}
    if len(inputs) != 1:
        return Hint(zero)
    told = [either(is_zero(x), same[1] if (same := same_of(x)) else False) for x in cases]
    return Hint(zero, (inputs.pop(), all_of(told)))


def _chosen(which: Any, cases: Sequence[Value]) -> Value:
    """The case that a known number selects."""
    is_case = [all_equal(which, i) for i in range(len(cases))]
    for case, is_it in zip(cases, is_case, strict=True):
        if is_it is True:
            return case
    if all(isinstance(case, Known) for case in cases):
        values = [case.value for case in cases if isinstance(case, Known)]
        result = values[0]
        for value, is_it in zip(values[1:], is_case[1:], strict=True):
            result = jnp.where(is_it, value, result)
        return Known(result)
    zero = all_of([either(negated(is_it), is_zero(case)) for is_it, case in zip(is_case, cases, strict=True)])
    inputs = {same[0] for same in map(same_of, cases) if same is not None}
    if len(inputs) != 1:
        return Hint(zero)
    told = [
        either(negated(is_it), same[1] if (same := same_of(case)) else False)
        for is_it, case in zip(is_case, cases, strict=True)
    ]
    return Hint(zero, (inputs.pop(), all_of(told)))


def _cond(eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
    branches = [_inside(branch, ins[1:]) for branch in bodies_of(eqn)]
    columns = list(zip(*branches, strict=True))
    which = ins[0]
    if isinstance(which, Known):
        number = jnp.clip(jnp.asarray(which.value, jnp.int32), 0, len(branches) - 1)
        return [_chosen(number, column) for column in columns]
    unknown = []
    for column in columns:
        inputs = {same[0] if (same := same_of(x)) else None for x in column}
        told = all_of([same[1] for x in column if (same := same_of(x))])
        same = (inputs.pop(), told) if len(inputs) == 1 and None not in inputs else None
        unknown.append(Hint(all_of([is_zero(x) for x in column]), same))  # pyright: ignore[reportArgumentType]
    return unknown


def _scan(eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
    """A loop whose carry has inputs: the facts are carried through a separate loop."""
    (consts, carry, xs), (inside,) = scan_parts(eqn, ins), bodies_of(eqn)
    n_carry = len(carry)
    carry = [_whole(x, v.aval) for x, v in zip(carry, scan_parts(eqn, eqn.invars).carry, strict=True)]
    # The slices of an operand are unknown, but they are zero if the operand is zero.
    xs = [Hint(is_zero(x)) for x in xs]
    while True:
        parts = [x.value if isinstance(x, Known) else (x.zero, x.same[1] if x.same else False) for x in carry]
        found: list[list[Value]] = []

        def body(state: list[Any], _: None, carry: list[Value] = carry, found: list = found):
            values = [
                Known(s) if isinstance(x, Known) else Hint(s[0], (x.same[0], s[1]) if x.same else None)
                for x, s in zip(carry, state, strict=True)
            ]
            outs = _inside(inside, [*consts, *values, *xs])
            found.append(outs)
            new = []
            for x, old, out in zip(carry, state, outs, strict=False):
                if isinstance(x, Known):
                    new.append(jnp.asarray(out.value, old.dtype) if isinstance(out, Known) else old)
                else:
                    same = same_of(out)
                    is_it = x.same is not None and same is not None and same[0] == x.same[0]
                    told = same[1] if is_it else False  # pyright: ignore[reportOptionalSubscript]
                    new.append((jnp.asarray(both(old[0], is_zero(out))), jnp.asarray(both(old[1], told))))
            return new, [jnp.asarray(is_zero(out)) for out in outs[n_carry:]]

        start = jax.tree.map(jnp.asarray, parts)
        ends, zeros = jax.lax.scan(body, start, None, length=eqn.params["length"])
        lost = [
            i for i, x in enumerate(carry) if isinstance(x, Known) and not isinstance(found[-1][i], Known)
        ]
        if not lost:
            break
        for i in lost:
            carry[i] = Hint()
    outs: list[Value] = []
    for x, end in zip(carry, ends, strict=True):
        outs.append(
            Known(end) if isinstance(x, Known) else Hint(end[0], (x.same[0], end[1]) if x.same else None)
        )
    return [*outs, *(Hint(jnp.all(zero)) for zero in zeros)]


def _whole(x: Value, aval: Any) -> Value:
    """A value as a loop carries it: a known value in its full shape and dtype, or unknown if that is large."""
    if isinstance(x, Hint):
        return x
    if math.prod(aval.shape) > _LARGEST_RESULT or not is_plain(aval):
        return Hint(is_zero(x))
    return Known(jnp.broadcast_to(jnp.asarray(x.value, aval.dtype), aval.shape))


_IDENTITIES = frozenset(
    ("copy", "copy_p", "stop_gradient", "sharding_constraint", "reshard", "pvary", "reduce_precision")
)
_PARTWISE = frozenset(("optimization_barrier", "psum", "psum_invariant"))
_SPREADS = frozenset(
    ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "copy", "copy_p", "sharding_constraint",
     "reshard", "pvary", "rev", "slice")
)  # fmt: skip
_EXTREMES = frozenset(("reduce_and", "reduce_or", "reduce_max", "reduce_min"))
_POINTWISE = frozenset(
    ("add", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow", "neg", "abs", "sign", "floor", "ceil",
     "round", "exp", "exp2", "expm1", "log", "log1p", "sqrt", "rsqrt", "cbrt", "square", "sin", "cos", "tan", "tanh",
     "logistic", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "is_finite", "select_n", "clamp",
     "convert_element_type", "add_any", "nextafter", "stop_gradient", "erf")
)  # fmt: skip
_ZERO_FROM_FIRST = frozenset(
    (*_IDENTITIES, "neg", "abs", "sign", "sqrt", "cbrt", "square", "sin", "tan", "tanh", "asin", "atan", "sinh",
     "asinh", "expm1", "log1p", "floor", "ceil", "round", "real", "imag", "erf", "div", "rem", "convert_element_type",
     "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "rev", "slice", "gather", "dynamic_slice",
     "reduce_sum", "reduce_max", "reduce_min", "cumsum", "cummax", "cummin", "all_gather", "reduce_prod")
)  # fmt: skip
_ZERO_FROM_ANY = frozenset(("mul", "dot_general", "conv_general_dilated"))
_ZERO_FROM_ALL = frozenset(
    (
        "add",
        "add_any",
        "sub",
        "max",
        "min",
        "concatenate",
        "pad",
        "dynamic_update_slice",
        "scatter-add",
        "atan2",
    )
)
