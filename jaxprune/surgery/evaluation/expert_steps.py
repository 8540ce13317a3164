"""Outputs of experts through the equations of a model, by primitive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import bind, shape_of
from jaxprune.surgery.evaluation.expert_outputs import Operand, Output, Step, ended, joined, ranked
from jaxprune.surgery.evaluation.expert_products import dot_general, ragged_dot
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.rules import RULES
from jaxprune.surgery.inference.rules.pointwise import pointwise

_SCALES = frozenset(
    (
        "mul",
        "div",
        "neg",
        "convert_element_type",
        "copy",
        "stop_gradient",
        "select_n",
        "name",
        "reduce_precision",
    )
)
_REDUCTIONS = frozenset(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"))


def through(frame: Frame, eqn: JaxprEqn, operands: Sequence[Operand], outs: Sequence[Any]) -> Step:
    """What an equation with an operand that experts computed makes of it."""
    name = eqn.primitive.name
    rule = RULES.get(name)
    if rule is not None and rule.infer is pointwise:
        return _pointwise(name, operands, outs[0])
    step = _STEPS.get(name, ended)
    return step(eqn, operands)


def _pointwise(name: str, operands: Sequence[Operand], out: Any) -> Step:
    outputs = [operand.output for operand in operands if operand.output is not None]
    others = [operand for operand in operands if operand.output is None and operand.varies]
    rank = jnp.ndim(out)
    ids = joined([output.ids for output in outputs], rank)
    gates = [output.gate for output in outputs if output.gate is not None]
    if name == "mul" and any(operand.is_gate for operand in others):
        gates += [_narrow(operand.array, ids, rank) for operand in others if operand.is_gate]
    elif gates and not _is_scaled(name, operands, bool(others)):
        return ended(None, operands)
    gate = None
    for one in gates:
        one = ranked(one, rank)
        gate = one if gate is None else gate * one
    return Step(Output(ids, gate))


def _is_scaled(name: str, operands: Sequence[Operand], has_others: bool) -> bool:
    """Whether an operation leaves a gated output one: it is scaled by constants, or meets outputs of the same kind."""
    if name in ("add", "add_any", "sub", "mul") and all(operand.output is not None for operand in operands):
        return True
    return name in _SCALES and (name == "select_n" or not has_others)


def _narrow(gate: Any, ids: Any, rank: int) -> Any:
    """A gate without the features: they are the dimensions that it is broadcast along, else the last."""
    gate = ranked(gate, rank)
    is_narrow = any(n == 1 for n in gate.shape)
    return gate if is_narrow or not rank or ids.shape[-1] != 1 else gate[..., :1]


def _moving(move: Callable[[JaxprEqn, Any, Sequence[Operand]], Any]) -> Callable[..., Step]:
    """An operation that only moves the entries of its first operand."""

    def step(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
        first, *others = operands
        if first.output is None or any(operand.output is not None for operand in others):
            return ended(eqn, operands)
        ids, gate = first.output
        return Step(Output(move(eqn, ids, operands), None if gate is None else move(eqn, gate, operands)))

    return step


def _transpose(eqn: JaxprEqn, x: Any, operands: Sequence[Operand]) -> Any:
    del operands
    return jnp.transpose(x, eqn.params["permutation"])


def _broadcast(eqn: JaxprEqn, x: Any, operands: Sequence[Operand]) -> Any:
    shape = [1] * len(shape_of(eqn.outvars[0]))
    for n, dim in zip(x.shape, eqn.params["broadcast_dimensions"], strict=True):
        shape[dim] = n
    return x.reshape(shape)


def _reshape(eqn: JaxprEqn, x: Any, operands: Sequence[Operand]) -> Any:
    """Reshapes runs of dimensions; those along which an array is broadcast stay of size 1."""
    del operands
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    full, small = [], []
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + 1, j + 1
        while (n := math.prod(before[d] for d in ins)) != (m := math.prod(after[d] for d in outs)):
            if n < m and i < len(before):
                ins, i = [*ins, i], i + 1
            else:
                outs, j = [*outs, j], j + 1
        is_narrow = all(x.shape[d] == 1 for d in ins)
        full += [1 if is_narrow else before[d] for d in ins]
        small += [1 if is_narrow else after[d] for d in outs]
    return jnp.broadcast_to(x, full).reshape(small)


def _squeeze(eqn: JaxprEqn, x: Any, operands: Sequence[Operand]) -> Any:
    del operands
    return jnp.squeeze(x, eqn.params["dimensions"])


def _slice(eqn: JaxprEqn, x: Any, operands: Sequence[Operand]) -> Any:
    del operands
    p = eqn.params
    steps = p["strides"] or (1,) * x.ndim
    bounds = zip(x.shape, p["start_indices"], p["limit_indices"], steps, strict=True)
    return x[tuple(slice(None) if n == 1 else slice(a, b, step) for n, a, b, step in bounds)]


def _gather(eqn: JaxprEqn, x: Any, operands: Sequence[Operand]) -> Any:
    sizes = eqn.params["slice_sizes"]
    shape = operands[0].array.shape
    full = [n if size == m else m for n, m, size in zip(x.shape, shape, sizes, strict=True)]
    sizes = tuple(min(n, size) for n, size in zip(full, sizes, strict=True))
    fill = -1 if jnp.issubdtype(x.dtype, jnp.integer) else 0
    (moved,) = bind(eqn, [jnp.broadcast_to(x, full), operands[1].array], slice_sizes=sizes, fill_value=fill)
    return moved


def _scatter(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
    """Outputs that are put in other places, each in one of its own; those of several experts that are summed end."""
    operand, indices, updates = operands
    if (
        updates.output is None
        or operand.output is not None
        or (updates.output.gate is not None and eqn.primitive.name != "scatter")
    ):
        return ended(eqn, operands)
    numbers = eqn.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [dim for dim in range(jnp.ndim(operand.array)) if dim not in gone]

    def moved(x: Any) -> Any:
        shape, full = list(jnp.shape(operand.array)), list(jnp.shape(updates.array))
        for dim_update, dim in zip(numbers.update_window_dims, window, strict=True):
            if x.shape[dim_update] == 1:
                shape[dim] = full[dim_update] = 1
        empty = jnp.zeros(shape, x.dtype)
        return lax.scatter(empty, indices.array, jnp.broadcast_to(x, full), numbers, mode=eqn.params["mode"])

    ids, gate = updates.output
    return Step(Output(moved(ids + 1) - 1, None if gate is None else moved(gate)))


def _reduce(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
    (operand,) = operands
    assert operand.output is not None
    ids, gate = operand.output
    dims = tuple(eqn.params["axes"])
    if any(ids.shape[dim] > 1 for dim in dims) or gate is not None:
        return ended(eqn, operands)
    return Step(Output(jnp.squeeze(ids, dims)))


_STEPS: Mapping[str, Callable[..., Step]] = MappingProxyType(
    {
        "transpose": _moving(_transpose),
        "broadcast_in_dim": _moving(_broadcast),
        "reshape": _moving(_reshape),
        "squeeze": _moving(_squeeze),
        "slice": _moving(_slice),
        "gather": _moving(_gather),
        **dict.fromkeys(("scatter", "scatter-add"), _scatter),
        **dict.fromkeys(_REDUCTIONS, _reduce),
        "dot_general": dot_general,
        "ragged_dot_general": ragged_dot,
    }
)
