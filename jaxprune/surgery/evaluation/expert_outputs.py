"""Outputs of experts: which expert computed each entry of a value, and the router's weight that multiplies it.

Values are followed from the products with the experts' weights to the place where outputs of several experts are
added. `ids` and `gate` of a value are arrays that broadcast to it: the expert of each entry, and the router's
weight. Dimensions along which both have size 1 are the features of an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import shape_of
from jaxprune.surgery.inference.axes import Atom, normal
from jaxprune.surgery.inference.frames import Frame


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


def ended(eqn: JaxprEqn | None, operands: Sequence[Operand]) -> Step:
    """An operation that mixes the outputs with others, or that is not a linear one."""
    del eqn
    return Step(None, tuple(terms for operand in operands for terms in finished(operand)))


def joined(arrays: Sequence[Any], rank: int) -> Any:
    first, *more = (ranked(x, rank) for x in arrays)
    for x in more:
        first = jnp.maximum(first, x)
    return first


def ranked(x: Any, rank: int) -> Any:
    return x if jnp.ndim(x) == rank else jnp.reshape(x, (1,) * (rank - jnp.ndim(x)) + jnp.shape(x))


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
