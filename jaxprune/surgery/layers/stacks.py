"""Stacked layers: the scans each of whose steps is a layer that can be left out."""

from __future__ import annotations

from typing import NamedTuple

from jaxprune.jaxprs.calls import kind_of, scan_parts
from jaxprune.surgery.layers.graph import LITERAL, Graph
from jaxprune.surgery.layers.sums import NOTHING_LEFT, Refused


class Stack(NamedTuple):
    """A scan over stacked parameters; params: those that lose a slice with each step; skip: its first carry."""

    node: int
    length: int
    params: frozenset[int]
    skip: int


def stacks(graph: Graph) -> tuple[list[Stack], list[Refused]]:
    """The scans over layers, and those over parameters that can't lose steps."""
    found, refused = [], []
    for index, node in enumerate(graph.nodes):
        if kind_of(node.eqn) != "scan" or not any(v in graph.weights for v in node.ins):
            continue
        parts = scan_parts(node.eqn, node.ins)
        xs = [v for v in parts.xs if v != LITERAL]
        if not any(v in graph.data and graph.is_float(v) for v in parts.carry):
            continue
        if any(v in graph.data for v in xs):
            refused.append(Refused(index, "the steps of this scan run over an input: they are no layers"))
            continue
        params = [_stacked(graph, v) for v in xs if v in graph.weights]
        if not params:
            continue
        if None in params:
            refused.append(
                Refused(index, "what this scan runs over is computed from parameters, or used elsewhere")
            )
        elif any(graph.count(out) for out in node.outs[len(parts.carry) :]):
            refused.append(Refused(index, "this scan gives an output for each step, which would get shorter"))
        elif node.eqn.params["length"] < 2:
            refused.append(Refused(index, NOTHING_LEFT))
        else:
            skip = next(v for v in parts.carry if v in graph.data and graph.is_float(v))
            of_params = frozenset(p for p in params if p is not None)
            found.append(Stack(index, node.eqn.params["length"], of_params, skip))
    return found, refused


def _stacked(graph: Graph, value: int) -> int | None:
    """The parameter that a scanned operand is, cast perhaps; None if it is none or has other uses."""
    while graph.count(value) == 1:
        if value in graph.params:
            return graph.params.index(value)
        index = graph.maker.get(value)
        if index is None or graph.nodes[index].name != "convert_element_type":
            return None
        (value,) = graph.nodes[index].ins
    return None
