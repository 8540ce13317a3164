"""Plain layers: what lies between two weights, where the value that goes in and the one that comes out are alike."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from jaxprune.jaxprs.calls import bodies_of, kind_of
from jaxprune.surgery.layers.graph import Dead, Graph, Place


class Plain(NamedTuple):
    """before: the value that stands in for `after` once the layer is left out; dead: what dies then."""

    before: int
    after: int
    dead: Dead


def plain_layers(graph: Graph, taken: Collection[int]) -> list[Plain]:
    """The layers without a residual whose input and output have one shape and dtype, in order of the source.

    A layer reaches from the operand of one weighted operation to that of the next one that has the same shape, and
    takes no other float that depends on the inputs.

    Args:
      graph: the function.
      taken: nodes of residual branches and their sums, of which no plain layer is a part.
    """
    alive = {i for i, p in enumerate(graph.params) if p in graph.weights and graph.count(p)}
    operands = [
        v
        for index, node in enumerate(graph.nodes)
        if graph.is_weighted(index)
        for v in node.ins
        if v in graph.data and graph.is_float(v)
    ]
    operands = list(dict.fromkeys(operands))
    found = []
    for i, before in enumerate(operands):
        for after in operands[i + 1 :]:
            if not _alike(graph, before, after):
                continue
            inside = _between(graph, before, after)
            if inside is None or not inside.isdisjoint(taken) or not any(map(graph.is_weighted, inside)):
                continue
            dead = graph.dead_after(graph.users[after], {before: 1})
            if dead.params and not alive <= dead.params:
                found.append(Plain(before, after, dead))
                break
    return found


def place_of(graph: Graph, value: int) -> Place:
    """The place of the equation that makes a value."""
    return graph.nodes[graph.maker[value]].place


def _alike(graph: Graph, before: int, after: int) -> bool:
    a, b = graph.avals[before], graph.avals[after]
    if (
        (a.shape, a.dtype) != (b.shape, b.dtype)
        or after in graph.outs
        or not graph.above[after] >> before & 1
    ):
        return False
    if any(v not in graph.maker or len(graph.nodes[graph.maker[v]].outs) > 1 for v in (before, after)):
        return False  # an input of the function can't be noted
    return _rematerialized(graph, before) == _rematerialized(graph, after)


def _between(graph: Graph, before: int, after: int) -> frozenset[int] | None:
    """The nodes that make one value from the other alone, if nothing else uses what they make; else None."""
    inside = {
        index
        for index, node in enumerate(graph.nodes)
        if any(
            v != before and graph.above[after] >> v & 1 and graph.above[v] >> before & 1 for v in node.outs
        )
    }
    made = {v for index in inside for v in graph.nodes[index].outs}
    for index in inside:
        for v in graph.nodes[index].ins:
            if v in graph.data and graph.is_float(v) and v not in made and v != before:
                return None
    for v in (made | {before}) - {after}:
        if v in graph.outs or any(user not in inside for user, _ in graph.users.get(v, ())):
            return None
    return frozenset(inside)


def _rematerialized(graph: Graph, value: int) -> Place:
    """The innermost rematerialized call that makes a value."""
    place, jaxpr, found = place_of(graph, value), graph.traced.jaxpr, ()
    for depth, index in enumerate(place[:-1]):
        eqn = jaxpr.eqns[index]
        found = place[: depth + 1] if kind_of(eqn) == "remat" else found
        jaxpr = bodies_of(eqn)[0].jaxpr
    return found
