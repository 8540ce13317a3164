"""Outputs of experts in products: those that an expert's weights make, and sums over the experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.surgery.evaluation.expert_outputs import Operand, Output, Step, Terms, ended, finished, joined


def dot_general(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
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
    return Step(Output(joined(ids, ids[0].ndim), total))


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


def ragged_dot(eqn: JaxprEqn, operands: Sequence[Operand]) -> Step:
    """A product of rows with a matrix for each group: the weights have the experts of the rows."""
    rows, weights = operands[:2]
    if weights.output is None:
        return ended(eqn, operands)
    gate = rows.output.gate if rows.output is not None else None
    if gate is not None:
        ((contracted, _), _) = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
        gate = jnp.max(jnp.abs(gate), contracted[0])[:, None]
    return Step(Output(weights.output.ids, gate))
