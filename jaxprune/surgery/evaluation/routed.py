"""One run of a model that adds up, for each expert, the norms of its weighted outputs and its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jax_compat import context_of
from jaxprune.jaxprs import bind, control_flow
from jaxprune.jaxprs.calls import is_inline, kind_of, scan_parts
from jaxprune.jaxprs.equations import walk
from jaxprune.surgery.evaluation.expert_outputs import Operand, Output, Step, Terms, finished, started
from jaxprune.surgery.evaluation.expert_steps import through
from jaxprune.surgery.inference.axes import Atom
from jaxprune.surgery.inference.frames import Frame

Totals = dict[Any, tuple[Any, Any]]  # name of a group -> (sum of norms, number of tokens) of each expert


class Value(NamedTuple):
    """A value, and for each group of experts what it is.

    varies: whether it depends on the inputs; gates: groups whose router's weights it is computed from;
    weights: groups whose experts' parameters it is computed from, and no input; outputs: what experts computed.
    """

    array: Any
    varies: bool = False
    gates: frozenset[Any] = frozenset()
    weights: frozenset[Any] = frozenset()
    outputs: Mapping[Any, Output] = {}


class Routed:
    """Runs the frames of a model, with the groups of experts by name."""

    def __init__(self, atoms: Mapping[Any, Atom]):
        self.atoms = atoms

    def call(self, frame: Frame, args: Sequence[Value], totals: Totals) -> tuple[list[Value], Totals]:
        """The results of a call, and the totals after it."""

        def equation(index: int, eqn: JaxprEqn, ins: list[Value]) -> list[Value]:
            nonlocal totals
            with context_of(eqn):
                outs, totals = self.equation(frame, index, eqn, ins, totals)
            return outs

        consts = [Value(x) for x in frame.consts]
        return walk(frame.jaxpr, consts, args, lambda literal: Value(literal.val), equation), totals

    def equation(
        self, frame: Frame, index: int, eqn: JaxprEqn, ins: list[Value], totals: Totals
    ) -> tuple[list[Value], Totals]:
        bodies = frame.calls.get(index, ())
        match kind_of(eqn):
            case "scan":
                return self.scan(bodies[0], eqn, ins, totals)
            case "cond" if ins[0].varies:
                return self.cond(bodies, ins, totals)
        if bodies and is_inline(eqn):
            return self.call(bodies[0], ins, totals)
        results = bind(eqn, [x.array for x in ins])
        varies = any(x.varies for x in ins)
        outputs: dict[Any, Output] = {}
        weights = frozenset().union(*(x.weights for x in ins)) if not varies else frozenset()
        for name, atom in self.atoms.items():
            step = _step(frame, eqn, ins, results, name, atom) if varies else Step()
            totals = _added(totals, name, step.terms)
            if step.output is not None:
                outputs[name] = step.output
        gates = frozenset().union(*(x.gates for x in ins if _is_float(x.array)))
        gates -= {name for name in gates if name in outputs or any(name in x.outputs for x in ins)}
        return [
            Value(r, varies, gates if _is_float(r) else frozenset(), weights, outputs if i == 0 else {})
            for i, r in enumerate(results)
        ], totals

    def scan(
        self, body: Frame, eqn: JaxprEqn, ins: list[Value], totals: Totals
    ) -> tuple[list[Value], Totals]:
        consts, carry, xs = scan_parts(eqn, ins)
        totals = ended(ins, totals)
        marks = [
            *consts,
            *(x._replace(varies=True, gates=frozenset(), weights=frozenset()) for x in carry),
            *xs,
        ]

        def step(args: list[Any], totals: Totals) -> tuple[list[Any], Totals]:
            values = [mark._replace(array=x, outputs={}) for mark, x in zip(marks, args, strict=True)]
            outs, totals = self.call(body, values, totals)
            return [x.array for x in outs], ended(outs, totals)

        outs, totals = control_flow.scan(eqn, [x.array for x in ins], step, totals)
        return [Value(x, True) for x in outs], totals

    def cond(self, bodies: Sequence[Frame], ins: list[Value], totals: Totals) -> tuple[list[Value], Totals]:
        totals = ended(ins, totals)
        marks = ins[1:]

        def run(body: Frame):
            def of(args: list[Any], totals: Totals) -> tuple[list[Any], Totals]:
                values = [mark._replace(array=x, outputs={}) for mark, x in zip(marks, args, strict=True)]
                outs, totals = self.call(body, values, totals)
                return [x.array for x in outs], ended(outs, totals)

            return of

        outs, totals = lax.switch(ins[0].array, [run(b) for b in bodies], [x.array for x in marks], totals)
        return [Value(x, True) for x in outs], totals


def _step(frame: Frame, eqn: JaxprEqn, ins: list[Value], results: list[Any], name: Any, atom: Atom) -> Step:
    arrays = [x.array for x in ins]
    fresh = {i: started(frame, eqn, i, arrays, atom) for i, x in enumerate(ins) if name in x.weights}
    if eqn.primitive.name in ("gather", "dynamic_slice") and 0 in fresh:
        return Step(fresh[0])
    outputs = [fresh[i] if i in fresh else x.outputs.get(name) for i, x in enumerate(ins)]
    if all(output is None for output in outputs):
        return Step()
    operands = [
        Operand(x.array, x.varies, name in x.gates, output) for x, output in zip(ins, outputs, strict=True)
    ]
    return through(frame, eqn, operands, results)


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(array), jnp.floating)


def ended(values: Sequence[Value], totals: Totals) -> Totals:
    """The totals after values whose outputs are followed no further."""
    for value in values:
        for name, output in value.outputs.items():
            totals = _added(totals, name, finished(Operand(value.array, True, False, output)))
    return totals


def _added(totals: Totals, name: Any, terms: Sequence[Terms]) -> Totals:
    for norms, ids, counts in terms:
        total, count = totals[name]
        ids = jnp.where(ids < 0, total.shape[0], ids).ravel()
        total = total.at[ids].add(jnp.ravel(norms).astype(total.dtype), mode="drop")
        count = count.at[ids].add(jnp.ravel(counts).astype(count.dtype), mode="drop")
        totals = {**totals, name: (total, count)}
    return totals
