"""The streams at the places where layers are removed, in the full model and in the small one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.surgery.layers.branches import Branches
from jaxprune.surgery.layers.evaluation import Bypassed, Tapped, run
from jaxprune.surgery.layers.replacement.runs import Reduced, Run
from jaxprune.surgery.layers.replacement.tails import Tail, tail_of


class Place(NamedTuple):
    """A run, and the summand and its tail that take its map; None where there is none."""

    run: Run
    value: int
    sign: int
    tail: Tail | None


class Model(NamedTuple):
    """The function for inputs of one signature, full and without the branches."""

    branches: Branches
    places: list[Place]
    mode: Bypassed


def place_of_map(reduced: Reduced, run: Run) -> Place:
    """The last summand of a run whose tail takes a map, one with a weight first."""
    found = [(s.value, s.sign, tail_of(reduced.graph, s.value, reduced.count)) for s in run.summands]
    takes = sorted(
        (tail.weight is not None, value, sign, tail)
        for value, sign, tail in found
        if tail is not None and reduced.graph.avals[value].shape == reduced.graph.avals[run.end].shape
    )
    if not takes:
        return Place(run, -1, 1, None)
    _, value, sign, tail = takes[-1]
    return Place(run, value, sign, tail)


def values_of(
    model: Model, indices: Sequence[int], full: list[Any], small: list[Any] | None, batch: Any
) -> list[Any]:
    """(M, Y + M, L) for each run; without `small`, Y + M is that of the full model, with its own M."""
    graph = model.branches.graph
    places = [model.places[index] for index in indices]
    wanted = {p.run.end for p in places} | {s.value for p in places for s in p.run.summands}
    at = {graph.nodes[graph.maker[v]].place for v in wanted if v in graph.maker}

    def noted(arrays: list[Any], mode: Bypassed) -> Callable[[int], Any]:
        tapped = Tapped(mode, at)
        run(graph.traced, arrays, batch, tapped)

        def value(number: int) -> Any:
            if number not in graph.maker:
                return [*graph.traced.consts, *arrays, *_arrays_of(batch)][number]
            node = graph.nodes[graph.maker[number]]
            return tapped.noted[node.place][node.outs.index(number)]

        return value

    of_full = noted(full, Bypassed({}, {}, frozenset()))
    of_small = of_full if small is None else noted(small, model.mode)
    found = []
    for place in places:
        if place.tail is None:
            found.append(())
            continue
        if small is None:
            here = sum(s.sign * of_full(s.value).astype(np.float32) for s in place.run.summands)
        else:
            here = of_small(place.run.end)
        found.append((of_small(place.value), here, of_full(place.run.end)))
    return found


def _arrays_of(batch: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(batch) if is_array_leaf(x)]
