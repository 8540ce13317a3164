"""Runs: the places of a residual stream at which removed branches are missing, and what is still added before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxprune.surgery.layers.branches import Branches
from jaxprune.surgery.layers.graph import LITERAL, Graph
from jaxprune.surgery.layers.sums import is_sum

_CASTS = ("convert_element_type", "copy", "reduce_precision")


class Summand(NamedTuple):
    """A value that is added to the stream, with the sign of the sum."""

    value: int
    sign: int


class Run(NamedTuple):
    """Removed branches between which nothing reads the stream.

    removed: their names; end: the value of the stream after them; summands: what is left of it, as a sum of values.
    """

    removed: tuple[str, ...]
    end: int
    summands: tuple[Summand, ...]


class Reduced:
    """A graph without some branches: what is dropped from which sums, and how often a value is still used."""

    def __init__(self, branches: Branches, names: Sequence[str]):
        self.graph: Graph = branches.graph
        places = self.graph.places
        self.dead = branches.removed(names).nodes
        self.dropped: dict[int, set[int]] = {}
        self.names: dict[int, list[str]] = {}
        for branch in (branches[name] for name in names):
            for place, operand in branch.drops:
                if place not in places:  # in the body of a scan
                    continue
                self.dropped.setdefault(places[place], set()).add(operand)
                self.names.setdefault(places[place], []).append(branch.name)
        self.zeros: set[int] = set()  # the results of sums that lose all operands
        self.touched: dict[int, int] = {}  # a sum that loses an operand -> the value that is left of it
        self._propagate()

    def users(self, value: int) -> list[tuple[int, int]]:
        """The (node, operand) pairs that still use a value."""
        return [
            (node, operand)
            for node, operand in self.graph.users.get(value, ())
            if node not in self.dead and operand not in self.dropped.get(node, ())
        ]

    def count(self, value: int) -> int:
        """How often a value is still used."""
        return len(self.users(value)) + self.graph.outs.count(value)

    def _propagate(self) -> None:
        for index, node in enumerate(self.graph.nodes):
            if index in self.dead or (index not in self.dropped and not is_sum(self.graph, index)):
                continue
            left = [
                value
                for operand, value in enumerate(node.ins)
                if operand not in self.dropped.get(index, ()) and value not in self.zeros
            ]
            if not left:
                self.zeros.update(node.outs)
            elif len(left) < len(node.ins):
                self.touched[index] = left[0]
                inner = (self.graph.maker.get(v) for v in node.ins if v in self.zeros)
                self.names.setdefault(index, []).extend(n for i in inner for n in self.names.get(i, ()))


def runs_of(branches: Branches, names: Iterable[str]) -> list[Run]:
    """The runs of removed branches, in order of the source.

    Args:
      branches: those of the function.
      names: the branches that are removed.
    """
    names = list(names)
    reduced = Reduced(branches, names)
    ends: dict[int, None] = {}
    for index in sorted(reduced.touched):
        ends[_end(reduced, index)] = None
    found = []
    for end in sorted(ends):
        passed: list[int] = []
        summands = tuple(_summands(reduced, end, 1, passed))
        (value,) = reduced.graph.nodes[end].outs
        of_run = {name for index in passed for name in reduced.names.get(index, ())}
        found.append(Run(tuple(n for n in names if n in of_run), value, summands))
    return found


def _end(reduced: Reduced, index: int) -> int:
    """The last sum that takes a sum's result and that nothing but sums has read before."""
    graph = reduced.graph
    while True:
        (value,) = graph.nodes[index].outs
        users = reduced.users(value)
        if len(users) != 1 or value in graph.outs:
            return index
        ((user, _),) = users
        if user not in reduced.touched and not is_sum(graph, user):
            return index
        index = user


def _summands(reduced: Reduced, index: int, sign: int, passed: list[int]) -> Iterator[Summand]:
    """What is left of a sum, through the sums and casts that nothing else reads; `passed` gets the sums."""
    graph, node = reduced.graph, reduced.graph.nodes[index]
    passed.append(index)
    dropped = reduced.dropped.get(index, ())
    for operand, value in enumerate(node.ins):
        if operand in dropped or value in reduced.zeros:
            continue
        of_operand = -sign if node.name == "sub" and operand == 1 else sign
        below = value
        maker = graph.maker.get(below)
        while maker is not None and graph.nodes[maker].name in _CASTS and reduced.count(below) == 1:
            (below,) = graph.nodes[maker].ins
            maker = graph.maker.get(below)
        inner = maker is not None and (maker in reduced.touched or is_sum(graph, maker))
        if maker is not None and inner and reduced.count(below) == 1:
            yield from _summands(reduced, maker, of_operand, passed)
        elif value != LITERAL:
            yield Summand(value, of_operand)
