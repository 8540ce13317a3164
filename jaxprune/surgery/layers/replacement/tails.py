"""Tails: the linear end of what a kept layer adds to the stream, into which a linear map can be folded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs import bind
from jaxprune.jaxprs.equations import literal_value
from jaxprune.jaxprs.views import FOLLOWED, Matrix, View, follow, matrix, whole
from jaxprune.surgery.layers.graph import LITERAL, Graph

Count = Callable[[int], int]  # value -> how often it is used
_PASSED = ("convert_element_type", "copy", "reduce_precision", "stop_gradient")


class Affine(NamedTuple):
    """An entrywise step with a vector of the map's axis: u + vector, u - vector, u * vector or u / vector.

    operand: (node, operand) of the vector; axis: its axis; place: the parameter's entries, if the vector is a
    parameter that nothing else uses.
    """

    op: Literal["add", "sub", "mul", "div"]
    operand: tuple[int, int]
    axis: int
    place: tuple[int, Matrix] | None


class Tail(NamedTuple):
    """The steps from a value back to the weight that makes it.

    axis: the axis of the value that the map acts on; size: its size; steps: the last one first; weight: the
    parameter and its entries, as a matrix with the axis as its outputs, or None where the map must be diagonal and
    the last step is a scale.
    """

    axis: int
    size: int
    steps: tuple[Affine, ...]
    weight: tuple[int, Matrix] | None

    @property
    def takes_constant(self) -> bool:
        """Whether a bias takes a constant that the map adds."""
        return any(step.op in ("add", "sub") and step.place for step in self.steps)

    @property
    def leaf(self) -> int:
        """The parameter into which the map is folded."""
        place = self.weight or self.steps[-1].place
        assert place is not None
        return place[0]


def tail_of(graph: Graph, value: int, count: Count) -> Tail | None:
    """The linear end of a value that one other value alone takes; None if it has none that a map fits into.

    Args:
      graph: the function.
      value: a value.
      count: how often a value is used.
    """
    shape = graph.avals[value].shape
    found = [_walk(graph, value, axis, count) for axis in reversed(range(len(shape))) if shape[axis] > 1]
    tails = [tail for tail in found if tail is not None]
    return next((t for t in tails if t.weight), tails[0] if tails else None)


def constant(graph: Graph, value: int, arrays: Sequence[Any], eqn_literal: Any = None) -> Any:
    """A value that depends on parameters and constants alone, computed from the parameters' arrays."""
    if value == LITERAL:
        return literal_value(eqn_literal)
    if value in graph.params:
        return arrays[graph.params.index(value)]
    if value < len(graph.traced.consts):
        return graph.traced.consts[value]
    node = graph.nodes[graph.maker[value]]
    args = [
        jnp.asarray(constant(graph, v, arrays, atom), atom.aval.dtype)  # type: ignore[attr-defined]
        for v, atom in zip(node.ins, node.eqn.invars, strict=True)
    ]
    return bind(node.eqn, args)[node.outs.index(value)]


def vector(graph: Graph, step: Affine, size: int, arrays: Sequence[Any]) -> np.ndarray:
    """The vector of a step, in float64."""
    index, operand = step.operand
    value = graph.nodes[index].ins[operand]
    found = [(value, None)] if value == LITERAL else _unspread(graph, value, step.axis)
    array = constant(graph, found[-1][0], arrays, graph.nodes[index].eqn.invars[operand])
    entries = np.asarray(jnp.asarray(array, jnp.float32), np.float64).reshape(-1)
    return np.broadcast_to(entries if found[-1][1] is not None else entries[:1], (size,))


def _walk(graph: Graph, value: int, axis: int, count: Count) -> Tail | None:
    first, size, steps = axis, graph.avals[value].shape[axis], []
    while count(value) == 1 and value in graph.maker:
        index = graph.maker[value]
        node = graph.nodes[index]
        data = [operand for operand, v in enumerate(node.ins) if v in graph.data]
        if node.name in ("dot_general", "conv_general_dilated", "gather"):
            weight = _weight(graph, index, axis, count)
            return Tail(first, size, tuple(steps), weight) if weight and _foldable(steps) else None
        if len(data) != 1:
            steps += _scale_of_scale(graph, index, axis, size, count)
            break
        if node.name in ("add", "sub", "mul", "div", "add_any"):
            step = _affine(graph, index, 1 - data[0], axis, size, count)
            if step is None:
                break
            steps.append(step)
        elif node.name == "transpose":
            axis = node.eqn.params["permutation"][axis]
        elif node.name in ("reshape", "squeeze", "expand_dims"):
            before, after = graph.avals[node.ins[0]].shape, graph.avals[value].shape
            lead = math.prod(after[:axis])
            same = [i for i, n in enumerate(before) if n == size and math.prod(before[:i]) == lead]
            if not same:
                break
            axis = same[-1]
        elif node.name not in _PASSED:
            break
        value = node.ins[data[0]]
    # No weight makes it; a diagonal map fits into a scale, together with the biases after it.
    while steps and not (steps[-1].op == "mul" and steps[-1].place):
        steps.pop()
    return Tail(first, size, tuple(steps), None) if steps and _foldable(steps) else None


def _foldable(steps: Sequence[Affine]) -> bool:
    """Whether each constant that a map would change is a bias, or has one before it that takes the change."""
    constants = [step for step in steps if step.op in ("add", "sub")]
    return not constants or constants[-1].place is not None


def _affine(graph: Graph, index: int, operand: int, axis: int, size: int, count: Count) -> Affine | None:
    """The step that a node takes by an operand which depends on no input."""
    node = graph.nodes[index]
    value = node.ins[operand]
    if node.name in ("sub", "div") and operand == 0:
        return None
    op: Any = "add" if node.name == "add_any" else node.name
    if value == LITERAL:
        return Affine(op, (index, operand), axis, None)
    if not graph.is_float(value) or not _is_known(graph, value):
        return None
    found = _unspread(graph, value, axis)
    source, at = found[-1]
    shape = graph.avals[source].shape
    if at is not None and not shape[at] == size == math.prod(shape):
        return None
    alone = at is not None and all(count(v) == 1 for v, _ in found)
    return Affine(op, (index, operand), axis, _place(graph, source, at, count) if alone else None)


def _scale_of_scale(graph: Graph, index: int, axis: int, size: int, count: Count) -> list[Affine]:
    """The scale g of u * (r * g), which is (u * r) * g: norms multiply the scale first."""
    node = graph.nodes[index]
    for value in node.ins if node.name == "mul" else ():
        inner = graph.maker.get(value)
        if inner is None or graph.nodes[inner].name != "mul" or count(value) != 1:
            continue
        data = [operand for operand, v in enumerate(graph.nodes[inner].ins) if v in graph.data]
        if len(data) == 1 and len(graph.avals[value].shape) > axis and graph.avals[value].shape[axis] == size:
            step = _affine(graph, inner, 1 - data[0], axis, size, count)
            if step is not None and step.place is not None:
                return [step]
    return []


def _weight(graph: Graph, index: int, axis: int, count: Count) -> tuple[int, Matrix] | None:
    """The entries of the parameter by which a product makes an axis of its result."""
    node = graph.nodes[index]
    p = node.eqn.params
    if node.name == "conv_general_dilated":
        numbers = p["dimension_numbers"]
        if p["feature_group_count"] != 1 or p["batch_group_count"] != 1 or numbers.out_spec[1] != axis:
            return None
        operand, of_weight = 1, numbers.rhs_spec[0]
    elif node.name == "gather":
        numbers, shape = p["dimension_numbers"], graph.avals[node.ins[0]].shape
        batching = getattr(numbers, "operand_batching_dims", ())
        left = [i for i in range(len(shape)) if i not in (*numbers.collapsed_slice_dims, *batching)]
        if axis not in numbers.offset_dims:
            return None
        operand, of_weight = 0, left[sorted(numbers.offset_dims).index(axis)]
        if p["slice_sizes"][of_weight] != shape[of_weight]:
            return None
    else:
        contracted, batched = p["dimension_numbers"]
        free = [
            (operand, i)
            for operand in (0, 1)
            for i in range(len(graph.avals[node.ins[operand]].shape))
            if i not in (*contracted[operand], *batched[operand])
        ]
        place = axis - len(batched[0])
        if place < 0:
            return None
        operand, of_weight = free[place]
    return _place(graph, node.ins[operand], of_weight, count)


def _place(graph: Graph, value: int, axis: int, count: Count) -> tuple[int, Matrix] | None:
    """The entries of the parameter that nothing else uses and that a value views, its axis as outputs."""
    view = _view(graph, value, count)
    if view is None:
        return None
    others = [i for i in range(len(view.axes)) if i != axis]
    return view.leaf, matrix(view, [], others, [axis])


def _view(graph: Graph, value: int, count: Count) -> View | None:
    if value == LITERAL or count(value) != 1:
        return None
    if value in graph.params:
        leaf = graph.params.index(value)
        return whole(leaf, tuple(graph.avals[value].shape))
    index = graph.maker.get(value)
    if index is None or graph.nodes[index].name not in FOLLOWED:
        return None
    node = graph.nodes[index]
    before = _view(graph, node.ins[0], count)
    if before is None:
        return None
    found = follow(node.eqn, before, [None] * (len(node.ins) - 1))
    return found[node.outs.index(value)] if isinstance(found, list) else found


def _unspread(graph: Graph, value: int, axis: int) -> list[tuple[int, int | None]]:
    """A value and what it repeats along other axes, each with the axis; None where it is one number repeated."""
    found: list[tuple[int, int | None]] = [(value, axis)]
    while value in graph.maker and graph.nodes[graph.maker[value]].name == "broadcast_in_dim":
        node = graph.nodes[graph.maker[value]]
        source, kept = node.ins[0], node.eqn.params["broadcast_dimensions"]
        shape = () if source == LITERAL else graph.avals[source].shape
        if axis not in kept or shape[kept.index(axis)] != graph.avals[value].shape[axis]:
            break
        value, axis = source, kept.index(axis)
        found.append((value, axis))
    shape = graph.avals[value].shape
    repeats = value in graph.maker and graph.nodes[graph.maker[value]].name == "broadcast_in_dim"
    source = graph.nodes[graph.maker[value]].ins[0] if repeats else value
    if source == LITERAL or math.prod(graph.avals[source].shape) == 1:
        found[-1] = (value, None if math.prod(shape) != 1 or shape[axis] == 1 else axis)
    return found


def _is_known(graph: Graph, value: int) -> bool:
    """Whether parameters and constants of the whole function alone make a value."""
    stack, seen = [value], {LITERAL}
    while stack:
        value = stack.pop()
        if value in seen or value in graph.params or value < len(graph.traced.consts):
            continue
        seen.add(value)
        index = graph.maker.get(value)
        if index is None or value in graph.data:
            return False
        stack += graph.nodes[index].ins
    return True
