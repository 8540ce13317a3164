"""FLOPs of products and calls, in one formula for whole functions, for parts of them and for weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from jax.extend.core import Jaxpr, JaxprEqn

from jaxprune.jaxprs.calls import bodies_of, is_inline, kind_of, scan_parts, settled, while_parts
from jaxprune.jaxprs.equations import shape_of, walk
from jaxprune.jaxprs.tracing import Traced

PRODUCTS = frozenset(("dot_general", "ragged_dot_general", "conv_general_dilated"))
_PICKS = frozenset(("gather", "dynamic_slice"))

N = TypeVar("N", int, float)


class Made(NamedTuple):
    """A value that is computed from parameters alone.

    of: numbers of these parameters; picked: whether an input picked parts of them. A picked part is a weight (an
    expert's matrix), unless another weight multiplies it: then it is an activation (rows of an embedding).
    """

    of: frozenset[int] = frozenset()
    picked: bool = False


# The origin of a value: the parameters that it is computed from, or None if it depends on an input.
Origin = Made | None


def product_flops(
    eqn: JaxprEqn,
    left: Sequence[Any],
    right: Sequence[Any],
    out: Sequence[Any],
    size: Callable[[Any], int] = int,
) -> int:
    """Floating-point operations of a product of `PRODUCTS`, two a multiply-add.

    A ragged product over rows counts each row once, with the matrix of its group. A product that contracts the
    ragged dimension has a result for each group, and each row contributes to one of them.

    Args:
      eqn: the equation.
      left, right, out: the dimensions of its operands and its result.
      size: gives the size of a dimension.
    """
    if eqn.primitive.name == "conv_general_dilated":
        features = eqn.params["dimension_numbers"].rhs_spec[0]
        window = math.prod(size(n) for dim, n in enumerate(right) if dim != features)
        return 2 * math.prod(map(size, out)) * window
    contracted, of_groups = _contracted(eqn)
    return 2 * math.prod(map(size, out[of_groups:])) * math.prod(size(left[dim]) for dim in contracted)


def call_flops(eqn: JaxprEqn, bodies: Sequence[Sequence[N]]) -> list[N]:
    """Floating-point operations of a call, given those of its bodies: one number for each quantity that is counted.

    The body of a loop counts once per step if the length is known, and once otherwise. A conditional counts as its
    most expensive branch, and a linear solver as its most expensive part.
    """
    if kind_of(eqn) in ("cond", "linear_solve"):
        return list(max(bodies, key=sum))
    return [sum(of_one) * eqn.params.get("length", 1) for of_one in zip(*bodies, strict=True)]


def total_flops(jaxpr: Jaxpr) -> int:
    """FLOPs of all products of a jaxpr, those of the functions that it calls included."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in PRODUCTS:
            left, right, out = map(shape_of, (*eqn.invars[:2], eqn.outvars[0]))
            total += product_flops(eqn, left, right, out)
        elif bodies := bodies_of(eqn):
            total += call_flops(eqn, [[total_flops(body.jaxpr)] for body in bodies])[0]
    return total


def flops_by_parameter(traced: Traced) -> list[float]:
    """FLOPs of the products that each parameter of a function takes part in.

    A product counts for the parameter that its operand is computed from. If the operand is computed from several
    parameters, the product is divided among them by size. Products of two activations count for no parameter.
    """
    weights: list[Origin] = [Made(frozenset({i})) for i in range(len(traced.paths))]
    ins = [*[Made()] * len(traced.consts), *weights, *[None] * len(traced.input_paths)]
    flops, _ = _of_jaxpr(traced.jaxpr, ins, [math.prod(aval.shape) for aval in traced.avals])
    return flops


def _of_jaxpr(jaxpr: Jaxpr, ins: Sequence[Origin], sizes: Sequence[int]) -> tuple[list[float], list[Origin]]:
    """FLOPs of each parameter in a jaxpr, and where its outputs come from."""
    flops = [0.0] * len(sizes)

    def equation(index: int, eqn: JaxprEqn, ins: list[Origin]) -> list[Origin]:
        del index
        found, outs = _of_equation(eqn, ins, sizes)
        flops[:] = [a + b for a, b in zip(flops, found, strict=True)]
        return outs

    outs = walk(jaxpr, [Made()] * len(jaxpr.constvars), ins, lambda literal: Made(), equation)
    return flops, outs


def _of_equation(eqn: JaxprEqn, ins: list[Origin], sizes: Sequence[int]) -> tuple[list[float], list[Origin]]:
    bodies = bodies_of(eqn)
    match kind_of(eqn):
        case "scan":
            consts, carry, xs = scan_parts(eqn, ins)
            flops, outs = _of_loop(bodies[0].jaxpr, consts, carry, xs, sizes)
            return call_flops(eqn, [flops]), outs
        case "while":
            of_cond, (consts, carry, _) = while_parts(eqn, ins)
            flops, outs = _of_loop(bodies[1].jaxpr, consts, carry, [], sizes)
            before, _ = _of_jaxpr(bodies[0].jaxpr, [*of_cond, *outs], sizes)
            return call_flops(eqn, [before, flops]), outs
        case "cond" | "linear_solve" as kind:
            found = [_of_jaxpr(body.jaxpr, body.of(ins), sizes) for body in bodies]
            outs = [_join([ins[0], *origins]) for origins in zip(*(outs for _, outs in found), strict=True)]
            if kind == "linear_solve":  # its results are not those of its bodies
                outs = [_join(ins)] * len(eqn.outvars)
            return call_flops(eqn, [flops for flops, _ in found]), outs
    if is_inline(eqn):
        return _of_jaxpr(bodies[0].jaxpr, ins, sizes)
    flops = [0.0] * len(sizes)
    if eqn.primitive.name in PRODUCTS:
        weights = [origin for origin in ins[:2] if origin is not None and origin.of]
        if len(weights) == 2 and weights[0].picked != weights[1].picked:
            weights = [origin for origin in weights if not origin.picked]
            ins = [None]
        if len(weights) == 1:
            left, right = map(shape_of, eqn.invars[:2])
            product = product_flops(eqn, left, right, shape_of(eqn.outvars[0]))
            whole = sum(sizes[i] for i in weights[0].of)
            for i in weights[0].of:
                flops[i] = product * sizes[i] / max(whole, 1)
    return flops, [_picked(ins) if eqn.primitive.name in _PICKS else _join(ins)] * len(eqn.outvars)


def _picked(ins: Sequence[Origin]) -> Origin:
    """The origin of parts of the first operand, which the other operands index."""
    array, *places = ins
    by_input = any(place is None for place in places)
    return None if array is None else array._replace(picked=array.picked or by_input)


def _of_loop(
    body: Jaxpr, consts: list[Origin], carry: list[Origin], xs: list[Origin], sizes: Sequence[int]
) -> tuple[list[float], list[Origin]]:
    """One step of a loop's body; the origin of the carry joins its origins in all steps."""
    flops: list[float] = []

    def step(carry: list[Origin]) -> list[Origin]:
        flops[:], outs = _of_jaxpr(body, [*consts, *carry, *xs], sizes)
        return outs

    outs = settled(step, carry, lambda a, b: _join((a, b)))
    return flops, outs


def _join(origins: Sequence[Origin]) -> Origin:
    known = [o for o in origins if o is not None]
    if len(known) < len(origins):
        return None
    return Made(frozenset().union(*(o.of for o in known)), any(o.picked for o in known))


def _contracted(eqn: JaxprEqn) -> tuple[tuple[int, ...], int]:
    """The dimensions of the left operand that a product contracts, and how many leading result dimensions to omit."""
    if eqn.primitive.name == "dot_general":
        return tuple(eqn.params["dimension_numbers"][0][0]), 0
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contract = tuple(numbers.dot_dimension_numbers[0][0])
    return contract, int(bool(set(contract) & set(numbers.lhs_ragged_dimensions)))
