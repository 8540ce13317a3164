"""A traced function as one flat graph: its equations through all inline calls, and what dies when a use is dropped."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn

from jaxprune.jaxprs import Source, Traced, shape_of
from jaxprune.jaxprs.calls import bodies_of, is_inline, kind_of
from jaxprune.jaxprs.equations import walk
from jaxprune.jaxprs.flops import PRODUCTS, call_flops, product_flops

LITERAL = -1
_NO_MORE: Mapping[int, int] = MappingProxyType({})
Place = tuple[int, ...]  # the number of an equation in its jaxpr, after those of the calls around it


class Node(NamedTuple):
    """An equation of the flat graph; `ins` and `outs` are the numbers of its values, literals are -1."""

    place: Place
    eqn: JaxprEqn
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    caller: Source | None

    @property
    def name(self) -> str:
        return self.eqn.primitive.name

    @property
    def source(self) -> str:
        return str(Source(self.eqn, self.caller))


class Dead(NamedTuple):
    """Nodes and parameters that nothing uses any more."""

    nodes: frozenset[int]
    params: frozenset[int]


@dataclass
class Graph:
    """Nodes in order of the source.

    Attributes:
      traced: the function.
      params: the values of the parameters.
      inputs: the values of the inputs.
      outs: the values of the results.
      avals: value -> its abstract array.
      maker: value -> the number of the node that makes it.
      users: value -> the (node, operand) pairs that use it.
      data: the values that depend on an input.
      weights: the values that depend on a parameter and on no input.
      above: value -> the values that it is made of, itself included, as the bits of an integer.
      bodies: the bodies of scans, once `scan_bodies` has made them.
      places: place -> the number of the node.
    """

    traced: Traced
    nodes: list[Node] = field(default_factory=list)
    params: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outs: list[int] = field(default_factory=list)
    avals: list[Any] = field(default_factory=list)
    maker: dict[int, int] = field(default_factory=dict)
    users: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    data: set[int] = field(default_factory=set)
    weights: set[int] = field(default_factory=set)
    above: list[int] = field(default_factory=list)
    bodies: Any = None

    @functools.cached_property
    def places(self) -> dict[Place, int]:
        return {node.place: index for index, node in enumerate(self.nodes)}

    def new(self, aval: Any, above: int = 0) -> int:
        number = len(self.avals)
        self.avals.append(aval)
        self.above.append(above | 1 << number)
        return number

    def count(self, value: int) -> int:
        """How often a value is used."""
        return len(self.users.get(value, ())) + self.outs.count(value)

    def is_float(self, value: int) -> bool:
        return jnp.issubdtype(getattr(self.avals[value], "dtype", jnp.int32), jnp.floating)

    def size(self, param: int) -> int:
        """The number of entries of a parameter."""
        return math.prod(self.traced.avals[param].shape)

    def is_weighted(self, index: int) -> bool:
        """Whether a node is a product by what parameters make, or a call that takes parameters."""
        node = self.nodes[index]
        of_params = any(i in self.weights for i in node.ins)
        return of_params and (node.name in PRODUCTS or kind_of(node.eqn) in ("scan", "while", "cond"))

    def dead_after(self, uses: Iterable[tuple[int, int]], more: Mapping[int, int] = _NO_MORE) -> Dead:
        """What nothing uses any more once operands of nodes are dropped.

        Args:
          uses: (node, operand) pairs.
          more: values that get uses -> how many.
        """
        dropped = set(uses)

        def count(value: int) -> int:
            return self.count(value) + more.get(value, 0)

        left: dict[int, int] = {}
        nodes: set[int] = set()
        stack = [self.nodes[node].ins[operand] for node, operand in dropped]
        while stack:
            value = stack.pop()
            if value == LITERAL:
                continue
            left[value] = left.get(value, count(value)) - 1
            index = self.maker.get(value)
            if left[value] or index is None or index in nodes:
                continue
            node = self.nodes[index]
            if node.eqn.effects or any(left.get(out, count(out)) for out in node.outs):
                continue
            nodes.add(index)
            stack += [v for operand, v in enumerate(node.ins) if (index, operand) not in dropped]
        params = {i for i, value in enumerate(self.params) if left.get(value) == 0}
        return Dead(frozenset(nodes), frozenset(params))

    def flops(self, nodes: Iterable[int]) -> int:
        """Floating-point operations of some nodes."""
        return sum(_flops(self.nodes[index].eqn) for index in nodes)


def flat_graph(traced: Traced) -> Graph:
    """Lays a traced function out flat; loops, conditionals and kernels stay one node each."""
    graph = Graph(traced)
    n_consts, n_params = len(traced.consts), len(traced.avals)
    values = [graph.new(v.aval) for v in traced.jaxpr.invars]
    graph.params = values[n_consts : n_consts + n_params]
    graph.inputs = values[n_consts + n_params :]
    graph.data.update(graph.inputs)
    graph.weights.update(graph.params)
    graph.outs = inlined(graph, traced.jaxpr, [], values, (), None)
    return graph


def inlined(
    graph: Graph,
    jaxpr: Jaxpr,
    consts: Sequence[int],
    ins: Sequence[int],
    place: Place,
    caller: Source | None,
) -> list[int]:
    """Adds the equations of a jaxpr to a graph; returns the values of its results."""

    def equation(index: int, eqn: JaxprEqn, atoms: list[int]) -> Sequence[int]:
        at = (*place, index)
        if is_inline(eqn):
            (body,) = bodies_of(eqn)
            of_consts = [graph.new(v.aval) for v in body.jaxpr.constvars]
            return inlined(graph, body.jaxpr, of_consts, body.of(atoms), at, Source(eqn, caller))
        above = 0
        for atom in atoms:
            above |= graph.above[atom] if atom != LITERAL else 0
        outs = tuple(graph.new(v.aval, above) for v in eqn.outvars)
        number = len(graph.nodes)
        graph.nodes.append(Node(at, eqn, tuple(atoms), outs, caller))
        graph.maker.update(dict.fromkeys(outs, number))
        for operand, atom in enumerate(atoms):
            if atom != LITERAL:
                graph.users.setdefault(atom, []).append((number, operand))
        if any(atom in graph.data for atom in atoms):
            graph.data.update(outs)
        elif any(atom in graph.weights for atom in atoms):
            graph.weights.update(outs)
        return outs

    return walk(jaxpr, consts, ins, lambda literal: LITERAL, equation)


def _size(dim: Any) -> int:
    """A dimension; a symbolic one counts once."""
    return dim if isinstance(dim, int) else 1


def _flops(eqn: JaxprEqn) -> int:
    if eqn.primitive.name in PRODUCTS:
        left, right = map(shape_of, eqn.invars[:2])
        return product_flops(eqn, left, right, shape_of(eqn.outvars[0]), _size)
    bodies = bodies_of(eqn)
    if not bodies:
        return 0
    return call_flops(eqn, [[sum(map(_flops, body.jaxpr.eqns))] for body in bodies])[0]
