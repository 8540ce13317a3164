"""Bodies of scans over layers as graphs of their own, and what dies when sums inside lose operands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jaxprune.jaxprs.calls import bodies_of, kind_of, scan_parts
from jaxprune.surgery.layers.graph import Graph, Place, inlined


class DeadInside(NamedTuple):
    """What nothing uses any more: nodes and parameters of the function, and nodes in the bodies of its scans."""

    nodes: frozenset[int]
    params: frozenset[int]
    inside: Mapping[int, frozenset[int]]  # node of a scan -> nodes of its body


class ScanBody(NamedTuple):
    """The body of a scan: its parameters are what is constant or scanned over; operands: these in the scan."""

    graph: Graph
    operands: tuple[int, ...]


def scan_bodies(graph: Graph) -> dict[int, ScanBody]:
    """Node -> body, of the scans over parameters that have no input to run over."""
    if graph.bodies is None:
        graph.bodies = {i: _body(graph, i) for i in range(len(graph.nodes)) if _is_over_layers(graph, i)}
    return graph.bodies


def dead_inside(
    graph: Graph, drops: Iterable[tuple[Place, int]], swaps: Iterable[tuple[Place, Place]] = ()
) -> DeadInside:
    """What nothing uses any more once sums lose operands, those in the bodies of scans in all steps.

    Args:
      graph: the function.
      drops: (place, operand) of sums.
      swaps: (place, place) of equations: the result of the second is used in place of that of the first.
    """
    outer, inner = set(), {}
    places, of_bodies = graph.places, scan_bodies(graph)
    in_bodies = {n.place: (i, at) for i, body in of_bodies.items() for at, n in enumerate(body.graph.nodes)}
    for place, operand in drops:
        if place in places:
            outer.add((places[place], operand))
        else:
            scan, at = in_bodies[place]
            inner.setdefault(scan, set()).add((at, operand))
    inside = {}
    for scan, uses in inner.items():
        body = of_bodies[scan]
        dead = body.graph.dead_after(uses)
        inside[scan] = dead.nodes
        outer.update((scan, body.operands[i]) for i in dead.params)
    more: dict[int, int] = {}
    for after, before in dict(swaps).items():
        (out,), (instead,) = graph.nodes[places[after]].outs, graph.nodes[places[before]].outs
        outer.update(graph.users[out])
        more[instead] = more.get(instead, 0) + 1
    dead = graph.dead_after(outer, more)
    return DeadInside(dead.nodes, dead.params, {s: n for s, n in inside.items() if s not in dead.nodes})


def flops_inside(graph: Graph, dead: DeadInside) -> int:
    """Floating-point operations of what is dead."""
    bodies = scan_bodies(graph)
    inside = (
        bodies[scan].graph.flops(nodes) * graph.nodes[scan].eqn.params["length"]
        for scan, nodes in dead.inside.items()
    )
    return graph.flops(dead.nodes) + sum(inside)


def _is_over_layers(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    if kind_of(node.eqn) != "scan":
        return False
    parts = scan_parts(node.eqn, node.ins)
    over_weights = any(v in graph.weights for v in parts.xs) and not any(v in graph.data for v in parts.xs)
    return over_weights and any(v in graph.data and graph.is_float(v) for v in parts.carry)


def _body(graph: Graph, index: int) -> ScanBody:
    node = graph.nodes[index]
    (body,) = bodies_of(node.eqn)
    inner = Graph(graph.traced)
    values = [inner.new(v.aval) for v in body.jaxpr.invars]
    numbers = scan_parts(node.eqn, list(range(len(values))))
    operands = (*numbers.consts, *numbers.xs)
    inner.params = [values[i] for i in operands]
    inner.inputs = [values[i] for i in numbers.carry]
    inner.data = {values[i] for i in range(len(values)) if node.ins[i] in graph.data}
    inner.data |= {v for v in inner.inputs if inner.is_float(v)}
    inner.weights = {values[i] for i in operands if node.ins[i] in graph.weights}
    inner.traced = graph.traced._replace(
        consts=[], paths=[""] * len(operands), avals=[inner.avals[v] for v in inner.params]
    )
    of_consts = [inner.new(v.aval) for v in body.jaxpr.constvars]
    inner.outs = inlined(inner, body.jaxpr, of_consts, values, node.place, node.caller)
    return ScanBody(inner, operands)
