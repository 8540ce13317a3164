"""Outputs of experts: which expert computed each entry of a value, and the router's weight that multiplies it.

Values are followed from the products with the experts' weights to the place where outputs of several experts are
added. `ids` and `gate` of a value are arrays that broadcast to it: the expert of each entry, and the router's
weight. Dimensions along which both have size 1 are the features of an output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import bind, shape_of
from jaxprune.surgery.inference.axes import Atom, normal
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


class Output(NamedTuple):
    """What experts computed: the expert of each entry, and the router's weight if it has been multiplied by one."""

    ids: Any
    gate: Any = None


class Operand(NamedTuple):
    """An operand of an equation, as one group of experts sees it."""

    array: Any
    varies: bool  # with the inputs
    is_gate: bool  # computed from the router's weights
    output: Output | None


class Terms(NamedTuple):
    """Norms of gated outputs, the experts that computed them, and how many tokens each stands for."""

    norms: Any
    ids: Any
    counts: Any


class Step(NamedTuple):
    """What an equation makes of the outputs of experts: the output that its result is, and the terms that end here."""

    output: Output | None = None
    terms: tuple[Terms, ...] = ()


def started(frame: Frame, eqn: JaxprEqn, place: int, arrays: Sequence[Any], atom: Atom) -> Output | None:
    """The experts' weights at a place of an equation, met by data: the expert of each entry of the operand.

    For weights that are looked up or multiplied in groups of rows it is the expert of each entry of the result.
    """
    name = eqn.primitive.name
    dims = [dim for dim, axis in enumerate(frame.ins(eqn)[place]) if normal(axis) == (atom,)]
    if name == "ragged_dot_general":
        return _of_rows(eqn, arrays) if place == 1 and dims else None
    if name == "gather" and place == 0 and dims and id(eqn) in frame.routed:
        return _looked_up(eqn, arrays[1], dims[0])
    if name == "dynamic_slice" and place == 0 and dims and id(eqn) in frame.routed:
        return Output(jnp.broadcast_to(arrays[1 + dims[0]], (1,) * len(shape_of(eqn.outvars[0]))))
    if not dims:
        return None
    shape = [1] * len(frame.ins(eqn)[place])
    shape[dims[0]] = atom.size
    return Output(jnp.arange(atom.size).reshape(shape))


def finished(operand: Operand) -> tuple[Terms, ...]:
    """The terms of a gated output that is used as a whole."""
    if operand.output is None or operand.output.gate is None:
        return ()
    value, (ids, gate) = jnp.asarray(operand.array, jnp.float32), operand.output
    ids, gate = (jnp.reshape(x, (1,) * value.ndim) if jnp.ndim(x) == 0 else x for x in (ids, gate))
    features = tuple(d for d in range(value.ndim) if ids.shape[d] == gate.shape[d] == 1)
    norms = jnp.sqrt(jnp.sum(value**2, features, keepdims=True))
    counts = jnp.broadcast_to(gate != 0, norms.shape)
    return (Terms(norms * counts, jnp.broadcast_to(ids, norms.shape), counts),)


def through(frame: Frame, eqn: JaxprEqn, operands: Sequence[Operand], outs: Sequence[Any]) -> Step:
    """What an equation with an operand that experts computed makes of it."""
    name = eqn.primitive.name
    rule = RULES.get(name)
    if rule is not None and rule.infer is pointwise:
        return _pointwise(name, operands, outs[0])
    step = _STEPS.get(name, _ended)
    return step(eqn, operands)


def _pointwise(name: str, operands: Sequence[Operand], out: Any) -> Step:
    outputs = [operand.output for operand in operands if operand.output is not None]
    others = [operand for operand in operands if operand.output is None and operand.varies]
    rank = jnp.ndim(out)
    ids = _joined([output.ids for output in outputs], rank)
    gates = [output.gate for output in outputs if output.gate is not None]
    if name == "mul" and any(operand.is_gate for operand in others):
        gates += [_narrow(operand.array, ids, rank) for operand in others if operand.is_gate]
    elif gates and not _is_scaled(name, operands, bool(others)):
        return _ended(None, operands)
    gate = None
    for one in gates:
        one = _ranked(one, rank)
        gate = one if gate is None else gate * one
    return Step(Output(ids, gate))


def _is_scaled(name: str, operands: Sequence[Operand], has_others: bool) -> bool:
    """Whether an operation leaves a gated output one: it is scaled by constants, or meets outputs of the same kind."""
    if name in ("add", "add_any", "sub", "mul") and all(operand.output is not None for operand in operands):
        return True
    return name in _SCALES and (name == "select_n" or not has_others)


def _ended(eqn: JaxprEqn | None, operands: Sequence[Operand]) -> Step:
    """An operation that mixes the outputs with others, or that is not a linear one."""
    del eqn
    return Step(None, tuple(terms for operand in operands for terms in finished(operand)))


def _joined(arrays: Sequence[Any], rank: int) -> Any:
    first, *more = (_ranked(x, rank) for x in arrays)
    for x in more:
        first = jnp.maximum(first, x)
    return first


def _ranked(x: Any, rank: int) -> Any:
    return x if jnp.ndim(x) == rank else jnp.reshape(x, (1,) * (rank - jnp.ndim(x)) + jnp.shape(x))


def _narrow(gate: Any, ids: Any, rank: int) -> Any:
    """A gate without the features: they are the dimensions that it is broadcast along, else the last."""
    gate = _ranked(gate, rank)
    is_narrow = any(n == 1 for n in gate.shape)
    return gate if is_narrow or not rank or ids.shape[-1] != 1 else gate[..., :1]


def _of_rows(eqn: JaxprEqn, arrays: Sequence[Any]) -> Output | None:
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), batch = numbers.dot_dimension_numbers
    rows, sizes = arrays[0], arrays[2]
    if jnp.ndim(rows) != 2 or any(batch) or tuple(numbers.lhs_ragged_dimensions) != (1 - contracted[0],):
        return None
    row = jnp.arange(rows.shape[1 - contracted[0]])
    return Output(jnp.searchsorted(jnp.cumsum(sizes), row, side="right")[:, None])


def _looked_up(eqn: JaxprEqn, indices: Any, dim: int) -> Output:
    numbers = eqn.params["dimension_numbers"]
    column = indices[..., numbers.start_index_map.index(dim)]
    shape = [1] * len(shape_of(eqn.outvars[0]))
    batch = [d for d in range(len(shape)) if d not in numbers.offset_dims]
    for d, n in zip(batch, column.shape, strict=True):
        shape[d] = n
    return Output(column.reshape(shape))


def _moving(move: Callable[[JaxprEqn, Any, Sequence[Operand]], Any]) -> Callable[..., Step]:
    """An operation that only moves the entries of its first operand."""

    def step(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
        first, *others = operands
        if first.output is None or any(operand.output is not None for operand in others):
            return _ended(eqn, operands)
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
        return _ended(eqn, operands)
    numbers = eqn.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [dim for dim in range(jnp.ndim(operand.array)) if dim not in gone]

    def moved(x: Any) -> Any:
        shape, full = list(jnp.shape(operand.array)), list(jnp.shape(updates.array))
        for dim_update, dim in zip(numbers.update_window_dims, window, strict=True):
            if x.shape[dim_update] == 1:
                shape[dim] = full[dim_update] = 1
        return bind(eqn, [jnp.zeros(shape, x.dtype), indices.array, jnp.broadcast_to(x, full)])[0]

    ids, gate = updates.output
    return Step(Output(moved(ids + 1) - 1, None if gate is None else moved(gate)))


def _reduce(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
    (operand,) = operands
    assert operand.output is not None
    ids, gate = operand.output
    dims = tuple(eqn.params["axes"])
    if any(ids.shape[dim] > 1 for dim in dims) or gate is not None:
        return _ended(eqn, operands)
    return Step(Output(jnp.squeeze(ids, dims)))


def _dot_general(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
    contracts, batches = eqn.params["dimension_numbers"]
    sides = [_Side(x, c, b) for x, c, b in zip(operands, contracts, batches, strict=True)]
    return _product(sides)


class _Side(NamedTuple):
    """An operand of a product, with its summed dimensions and its batch dimensions."""

    operand: Operand
    contract: Sequence[int]
    batch: Sequence[int]

    @property
    def free(self) -> list[int]:
        return [d for d in range(jnp.ndim(self.operand.array)) if d not in (*self.contract, *self.batch)]

    def in_order(self, x: Any, reduce: Callable[..., Any]) -> Any:
        """(batch, summed) dimensions in the order of both operands, after the free ones are reduced."""
        reduced = reduce(x, tuple(self.free), keepdims=True)
        order = (*self.batch, *self.contract, *self.free)
        return jnp.transpose(reduced, order).reshape(
            [reduced.shape[d] for d in order[: len(order) - len(self.free)]]
        )

    def in_result(self, x: Any, ahead: int, behind: int) -> Any:
        """An array that broadcasts to the operand, as one that broadcasts to the result of the product."""
        x = jnp.max(x, tuple(self.contract), keepdims=True)
        x = jnp.squeeze(
            jnp.transpose(x, (*self.batch, *self.free, *self.contract)), self._last(len(self.contract))
        )
        n = len(self.batch)
        return x.reshape(*x.shape[:n], *(1,) * ahead, *x.shape[n:], *(1,) * behind)

    @staticmethod
    def _last(count: int) -> tuple[int, ...]:
        return tuple(range(-count, 0))


def _product(sides: Sequence[_Side]) -> Step:
    outputs = [side.operand.output for side in sides]
    mixed = [
        i
        for i, (side, output) in enumerate(zip(sides, outputs, strict=True))
        if output is not None and side.operand.varies and any(output.ids.shape[d] > 1 for d in side.contract)
    ]
    gate = next((i for i in (0, 1) if sides[i].operand.is_gate and outputs[i] is None), None)
    if gate is not None and outputs[1 - gate] is not None and sides[1 - gate].operand.varies:
        if mixed:
            return Step(None, (_weighted(sides[1 - gate], sides[gate]),))
    elif mixed:
        return Step(
            None, _summed(sides, next((i for i in mixed if _gate_of(outputs[i]) is not None), mixed[0]))
        )
    else:
        gate = None
    if any(
        o is not None and any(o.ids.shape[d] > 1 for d in s.contract)
        for s, o in zip(sides, outputs, strict=True)
    ):
        return Step()
    ids, gates = [], []
    for i, (side, output) in enumerate(zip(sides, outputs, strict=True)):
        other = len(sides[1 - i].free)
        around = (0, other) if i == 0 else (other, 0)
        if output is not None:
            ids.append(side.in_result(output.ids, *around))
            if output.gate is not None:
                gates.append(side.in_result(jnp.abs(output.gate), *around))
        elif i == gate:
            gates.append(side.in_result(jnp.abs(side.operand.array), *around))
    total = None
    for one in gates:
        total = one if total is None else total * one
    return Step(Output(_joined(ids, ids[0].ndim), total))


def _gate_of(output: Output | None) -> Any:
    return None if output is None else output.gate


def _weighted(expert: _Side, gate: _Side) -> Terms:
    """The terms of sum_j g_j f_j, for the router's weights and outputs that are summed over the experts here."""
    assert expert.operand.output is not None
    value, weight = (jnp.asarray(side.operand.array, jnp.float32) for side in (expert, gate))
    norms = expert.in_order(value**2, jnp.sum) ** 0.5
    ids = jnp.broadcast_to(expert.in_order(expert.operand.output.ids, jnp.max), norms.shape)
    return Terms(norms * gate.in_order(jnp.abs(weight), jnp.sum), ids, gate.in_order(weight != 0, jnp.sum))


def _summed(sides: Sequence[_Side], i: int) -> tuple[Terms, ...]:
    """The terms of a product of gated activations that sums over the experts as well as their hidden units."""
    side, other = sides[i], sides[1 - i]
    output = side.operand.output
    if output is None or output.gate is None:
        return ()
    apart = [k for k, d in enumerate(side.contract) if output.ids.shape[d] > 1]
    within = [k for k in range(len(side.contract)) if k not in apart]
    changed = [
        _Side(s.operand, [s.contract[k] for k in within], [*s.batch, *(s.contract[k] for k in apart)])
        for s in (side, other)
    ]
    side, other = changed
    numbers = (tuple(side.contract), tuple(other.contract)), (tuple(side.batch), tuple(other.batch))
    terms = lax.dot_general(side.operand.array, other.operand.array, numbers)
    ids, gate = (side.in_result(x, 0, len(other.free)) for x in (output.ids, jnp.abs(output.gate)))
    return finished(Operand(terms, True, False, Output(ids, gate)))


def _ragged(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
    """A product of rows with a matrix for each group: the weights have the experts of the rows."""
    rows, weights = operands[:2]
    if weights.output is None:
        return _ended(eqn, operands)
    gate = rows.output.gate if rows.output is not None else None
    if gate is not None:
        ((contracted, _), _) = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
        gate = jnp.max(jnp.abs(gate), contracted[0])[:, None]
    return Step(Output(weights.output.ids, gate))


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
        "dot_general": _dot_general,
        "ragged_dot_general": _ragged,
    }
)
