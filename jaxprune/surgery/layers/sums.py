"""Residual sums: the operands of additions that can be dropped because another one passes them by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jaxprune.surgery.layers.graph import LITERAL, Dead, Graph

# What a skip may go through and still be one: with one operand that depends on the inputs.
_LOOKED_THROUGH = frozenset((
    "mul", "div", "add", "sub", "convert_element_type", "reshape", "broadcast_in_dim", "transpose", "pad", "slice",
    "squeeze", "copy", "expand_dims", "reduce_precision", "concatenate", "reduce_window", "reduce_window_sum",
    "reduce_window_max",
))  # fmt: skip
_SCALING = frozenset((
    "mul", "div", "neg", "convert_element_type", "reshape", "transpose", "copy", "reduce_precision",
))  # fmt: skip
_NONLINEAR = frozenset((
    "max", "tanh", "logistic", "erf", "exp", "erfc", "select_n", "integer_pow", "square", "rsqrt", "sqrt", "sin",
    "cos",
))  # fmt: skip
NO_RELATION = (
    "no operand of this sum is computed from another one, nor are both from one value of which the other is a "
    "projection"
)
NOTHING_LEFT = "no parameters would be left"


class Residual(NamedTuple):
    """An operand that can be dropped.

    node, operand: the addition and its operand; skip: the value that it is added to; dead: what dies with it; also:
    the other sums that have the same operand, which lose it too.
    """

    node: int
    operand: int
    skip: int
    dead: Dead
    also: tuple[tuple[int, int], ...] = ()


class Refused(NamedTuple):
    """An addition none of whose operands can go, and why."""

    node: int
    reason: str


class _Term(NamedTuple):
    """A summand or an inner sum: an operand of an addition, its sign, and the summands that it consists of."""

    node: int
    operand: int
    value: int
    sign: int
    leaves: frozenset[int]  # values


def residuals(graph: Graph) -> tuple[list[Residual], list[Refused]]:
    """The operands of sums that can be dropped, in order of the source, and sums of which none can."""
    found, refused = [], []
    exits: list[tuple[int, _Term, Dead]] = []
    adds = {i for i in range(len(graph.nodes)) if is_sum(graph, i)}
    inner = {i for i in adds if _only_sum(graph, i) in adds}
    alive = {i for i, p in enumerate(graph.params) if p in graph.weights and graph.count(p)}
    skips: dict[tuple[int, int], int] = {}
    for root in sorted(adds - inner):
        terms = list(_terms(graph, root, 1, adds & inner))
        reasons: list[str] = []
        here: list[Residual] = []
        leaves = [t for t in terms if t.leaves == frozenset({t.value})]
        for term in (t for t in terms if t.operand != LITERAL):
            skip = _skip(graph, term, leaves)
            if skip is not None:
                skips[term.node, term.operand] = skip
            dead = graph.dead_after([(term.node, term.operand)])
            if not any(map(graph.is_weighted, dead.nodes)):
                continue
            exits.append((root, term, dead))
            if skip is None:
                skip = _projected(graph, term, leaves, dead)
            if skip is None:
                reasons.append(NO_RELATION)
            elif alive <= dead.params:
                reasons.append(NOTHING_LEFT)
            else:
                here.append(Residual(term.node, term.operand, skip, dead))
        if not here and reasons:
            refused.append(Refused(root, reasons[-1]))
        found += here
    found += [*_shared(graph, adds, skips, alive), *_with_exits(graph, exits, found, alive)]
    return _distinct(graph, found), refused


def _shared(
    graph: Graph, adds: set[int], skips: dict[tuple[int, int], int], alive: set[int]
) -> Iterator[Residual]:
    """The values that nothing but several sums use, in one of which another operand passes them by."""
    for (node, operand), skip in skips.items():
        value = graph.nodes[node].ins[operand]
        uses = [use for use in graph.users[value] if use != (node, operand)]
        plain = all(n in adds and (graph.nodes[n].name != "sub" or at == 1) for n, at in uses)
        if uses and plain and value not in graph.outs:
            dead = graph.dead_after([(node, operand), *uses])
            if any(map(graph.is_weighted, dead.nodes)) and not alive <= dead.params:
                yield Residual(node, operand, skip, dead, tuple(uses))


def _with_exits(
    graph: Graph, exits: list[tuple[int, _Term, Dead]], found: list[Residual], alive: set[int]
) -> Iterator[Residual]:
    """Layers that give several sums different values (WaveNet): operands made of one value that nothing else uses."""
    of_entry: dict[int, list[tuple[int, tuple[int, int]]]] = {}
    for root, term, dead in exits:
        entries = _entries(graph, dead)
        if len(entries) == 1:
            of_entry.setdefault(entries.pop(), []).append((root, (term.node, term.operand)))
    residual = {(r.node, r.operand): r for r in found}
    for entry, terms in of_entry.items():
        drops = [drop for _, drop in terms]
        first = next((residual[drop] for drop in drops if drop in residual), None)
        several = 1 < len(drops) == len({root for root, _ in terms})
        if first is None or not several or entry not in graph.maker:
            continue
        dead = graph.dead_after(drops)
        if graph.maker[entry] not in dead.nodes or alive <= dead.params:
            continue
        others = tuple(drop for drop in drops if drop != (first.node, first.operand))
        yield Residual(first.node, first.operand, first.skip, dead, others)


def _distinct(graph: Graph, found: list[Residual]) -> list[Residual]:
    """Of those with which the same products die, the first."""
    seen: set[frozenset[int]] = set()
    out = []
    for residual in sorted(found, key=lambda r: (r.node, r.operand)):
        key = frozenset(filter(graph.is_weighted, residual.dead.nodes))
        if key not in seen:
            seen.add(key)
            out.append(residual)
    return out


def is_sum(graph: Graph, index: int) -> bool:
    """Whether a node adds two float arrays of one type that both depend on the inputs."""
    node = graph.nodes[index]
    if node.name not in ("add", "add_any", "sub") or LITERAL in node.ins:
        return False
    kinds = {
        (getattr(graph.avals[v], "shape", None), str(graph.avals[v].dtype)) for v in (*node.ins, *node.outs)
    }
    return len(kinds) == 1 and all(v in graph.data and graph.is_float(v) for v in node.ins)


def _only_sum(graph: Graph, index: int) -> int | None:
    """The node that is the only one to use a node's result, seen through scaling and casts."""
    while True:
        (out,) = graph.nodes[index].outs
        users = graph.users.get(out, ())
        if len(users) != 1 or out in graph.outs:
            return None
        ((index, operand),) = users
        if not _scales(graph, index, operand):
            return index


def _scales(graph: Graph, index: int, operand: int) -> bool:
    """Whether a node scales, casts or moves the entries of an operand, and takes no other one of the data."""
    node = graph.nodes[index]
    if node.name not in _SCALING or (node.name == "div" and operand != 0):
        return False
    return [v for v in node.ins if v in graph.data] == [node.ins[operand]]


def _sum_below(graph: Graph, value: int, inner: set[int]) -> tuple[int | None, int]:
    """The inner sum that a value is, perhaps scaled, and the sign that it gets."""
    sign, index = 1, graph.maker.get(value)
    while index is not None and index not in inner:
        node = graph.nodes[index]
        data = [operand for operand, v in enumerate(node.ins) if v in graph.data]
        if graph.count(value) != 1 or len(data) != 1 or not _scales(graph, index, data[0]):
            return None, sign
        sign = -sign if node.name == "neg" else sign
        value = node.ins[data[0]]
        index = graph.maker.get(value)
    return index, sign


def _terms(graph: Graph, index: int, sign: int, inner: set[int]) -> Iterator[_Term]:
    """All operands in a tree of additions: summands, and inner sums as a whole."""
    node = graph.nodes[index]
    for operand, value in enumerate(node.ins):
        of_operand = -sign if node.name == "sub" and operand == 1 else sign
        below, turned = _sum_below(graph, value, inner)
        terms = [] if below is None else list(_terms(graph, below, of_operand * turned, inner))
        leaves = frozenset().union(*(t.leaves for t in terms)) if terms else frozenset({value})
        if not (node.name == "sub" and operand == 0):  # without it, minus the other operand would be left
            yield _Term(index, operand, value, of_operand, leaves)
        elif not terms:
            yield _Term(index, LITERAL, value, of_operand, leaves)  # a skip that can't go itself
        yield from terms


def _skip(graph: Graph, term: _Term, leaves: list[_Term]) -> int | None:
    """The summand beside a term that passes it by: one that the term is computed from."""
    for other in leaves:
        if other.value not in term.leaves and other.sign > 0:
            for value in _through(graph, other.value):
                if graph.above[term.value] >> value & 1 and value != term.value and graph.is_float(value):
                    return other.value
    return None


def _through(graph: Graph, value: int) -> Iterator[int]:
    """A value, and what it is made of by scaling, casting and moving entries alone."""
    while True:
        yield value
        index = graph.maker.get(value)
        if index is None or graph.nodes[index].name not in _LOOKED_THROUGH:
            return
        data = [v for v in graph.nodes[index].ins if v in graph.data]
        if len(data) != 1:
            return
        (value,) = data


def _projected(graph: Graph, term: _Term, leaves: list[_Term], dead: Dead) -> int | None:
    """The other of two summands, if it is a projection of the one value that both are made of."""
    others = [t for t in leaves if t.value not in term.leaves]
    if len(leaves) != 2 or len(others) != 1 or others[0].sign < 0:
        return None
    (other,) = others
    node = graph.nodes[term.node]
    beside = graph.dead_after([(term.node, 1 - term.operand)])
    if node.ins[1 - term.operand] != other.value:
        return None
    entries, of_other = _entries(graph, dead), _entries(graph, beside)
    counts = [sum(map(graph.is_weighted, d.nodes)) for d in (dead, beside)]
    bends = [sum(_bends(graph, i) for i in d.nodes) for d in (dead, beside)]
    if (
        len(entries) == 1
        and entries == of_other
        and counts[0] >= 2
        and counts[1] == 1
        and bends[0] > bends[1]
    ):
        return other.value
    return None


def _entries(graph: Graph, dead: Dead) -> set[int]:
    """The values that nodes which die together take from outside."""
    made = {out for i in dead.nodes for out in graph.nodes[i].outs}
    used = {v for i in dead.nodes for v in graph.nodes[i].ins if v in graph.data and graph.is_float(v)}
    return used - made


def _bends(graph: Graph, index: int) -> bool:
    node = graph.nodes[index]
    return node.name in _NONLINEAR and any(v in graph.data for v in node.ins)
