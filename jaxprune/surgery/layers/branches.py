"""Branches: the layers of a model that can be left out, and what can't and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.patterns import names_of
from jaxprune.surgery.layers.graph import Graph, Place
from jaxprune.surgery.layers.scan_bodies import dead_inside, flops_inside
from jaxprune.surgery.layers.stacks import stacks
from jaxprune.tables import table_text


class Removed(NamedTuple):
    """What is removed when branches are left out.

    nodes: equations; params: whole parameters; inside: node of a scan -> equations of its body; steps: node of a
    scan -> its steps; slices: parameter -> the places of its first axis; size: entries of parameters; flops:
    floating-point operations.
    """

    nodes: frozenset[int]
    params: frozenset[int]
    inside: Mapping[int, frozenset[int]]
    steps: Mapping[int, frozenset[int]]
    slices: Mapping[int, frozenset[int]]
    size: int
    flops: int


@dataclass(frozen=True)
class Branch:
    """A layer that can be left out: what is added to a residual stream, several such, or a step of a scan.

    Attributes:
      name: the module of its parameters, unique in the model.
      kind: "sum" for one operand of an addition (in the body of a scan: in all of its steps), "block" for several,
        "step" for a step of a scan, "plain" for a layer without a residual.
      size: entries of the parameters that nothing uses once this branch alone is removed.
      flops: floating-point operations that are removed with it, two a multiply-add.
      params: the paths of these parameters; those of a step lose a slice.
      source: the source line of the addition, or of the scan.
      added_to: what it is added to: what is left in its place.
      inside: the name of the smallest branch that this one is a part of, or "".
      drops: (place, operand) of additions that lose an operand.
      steps: (place, step) of scans that lose a step.
      swaps: (place, place) of equations: the result of the second is used in place of that of the first.
    """

    name: str
    kind: Literal["sum", "block", "step", "plain"]
    size: int
    flops: int
    params: tuple[str, ...]
    source: str
    added_to: str
    inside: str = ""
    drops: tuple[tuple[Place, int], ...] = field(default=(), repr=False)
    steps: tuple[tuple[Place, int], ...] = field(default=(), repr=False)
    swaps: tuple[tuple[Place, Place], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.name


class Fixed(NamedTuple):
    """A sum or a scan that can't be removed, and why."""

    source: str
    reason: str


@dataclass(frozen=True, eq=False)
class Branches:
    """The branches of a model, in order of its source; printing them shows a table.

    Attributes:
      branches: the branches.
      fixed: the sums and scans that can't be removed, and why.
      tree: the parameters that were analysed, abstract.
      inputs: the inputs that were analysed, abstract.
      graph: the traced function.
      fn: the function.
    """

    branches: tuple[Branch, ...]
    fixed: tuple[Fixed, ...]
    tree: PyTree = field(repr=False)
    inputs: tuple[Any, ...] = field(repr=False)
    graph: Graph = field(repr=False)
    fn: Callable = field(repr=False)

    def __iter__(self) -> Iterator[Branch]:
        return iter(self.branches)

    def __len__(self) -> int:
        return len(self.branches)

    def __contains__(self, name: object) -> bool:
        return any(name in (branch, branch.name) for branch in self)

    def __getitem__(self, name: str) -> Branch:
        for branch in self:
            if branch.name == name:
                return branch
        raise KeyError(f"no branch {name!r}. There are: {self._listed()}.")

    def keys(self) -> list[str]:
        """The names of the branches."""
        return [branch.name for branch in self]

    def at(self, level: Literal["parts", "blocks"]) -> list[Branch]:
        """The innermost branches, or the outermost ones."""
        around = {branch.inside for branch in self}
        return [b for b in self if (b.name not in around if level == "parts" else not b.inside)]

    def free(
        self, level: Literal["parts", "blocks"], exclude: str | Branch | Iterable[str | Branch]
    ) -> list[Branch]:
        """The branches of a level that may be removed.

        Args:
          level: as in `at`.
          exclude: branches to keep, as in `named`. A block's parts are kept with it, and the block with any of them.
        """
        kept = set(self.named(exclude, "exclude"))
        whole = {name for inner in kept for name in self._around(inner)}
        return [
            b for b in self.at(level) if b.name not in kept | whole and kept.isdisjoint(self._around(b.name))
        ]

    def _around(self, name: str) -> set[str]:
        """The branches that a branch is a part of."""
        found = set()
        while name := self[name].inside:
            found.add(name)
        return found

    def named(self, patterns: str | Branch | Iterable[str | Branch], argument: str) -> list[str]:
        """Names of the branches that have these names, or that a pattern matches.

        Args:
          patterns: names, or regular expressions that match a whole name or a leading part of it, up to a slash.
          argument: where they come from, for error messages.

        Raises:
          ValueError: one that matches no branch, or is no regular expression.
        """
        given = (patterns,) if isinstance(patterns, str | Branch) else patterns
        return names_of(argument, map(str, given), {name: [name] for name in self.keys()}, "branch")

    def removed(self, names: Iterable[str]) -> Removed:
        """What is removed when these branches are left out together.

        It can be more than the branches' own sizes sum to: weights that they share.

        Args:
          names: of branches.
        """
        graph = self.graph
        chosen = [self[name] for name in names]
        dead = dead_inside(
            graph,
            {drop for branch in chosen for drop in branch.drops},
            {swap for branch in chosen for swap in branch.swaps},
        )
        steps: dict[int, frozenset[int]] = {}
        for place, step in (pair for branch in chosen for pair in branch.steps):
            index = graph.places[place]
            if index not in dead.nodes:
                steps[index] = steps.get(index, frozenset()) | {step}
        of_stack = {stack.node: stack for stack in stacks(graph)[0]}
        slices = {p: steps[index] for index in steps for p in of_stack[index].params - dead.params}
        size = sum(map(graph.size, dead.params))
        size += sum(len(gone) * graph.size(p) // graph.traced.avals[p].shape[0] for p, gone in slices.items())
        flops = flops_inside(graph, dead)
        for index, gone in steps.items():
            inside = dead._replace(nodes=frozenset(), inside={index: dead.inside.get(index, frozenset())})
            left = graph.flops([index]) - (flops_inside(graph, inside) if index in dead.inside else 0)
            flops += len(gone) * left // of_stack[index].length
        return Removed(dead.nodes, dead.params, dead.inside, steps, slices, size, flops)

    def check(self, params: PyTree) -> None:
        """Raises a ValueError for parameters that are not those that were analysed."""
        have = {
            path: np.shape(x)
            for path, x in zip(*flatten_with_paths(params)[:2], strict=True)
            if is_array_leaf(x)
        }
        for path, aval in zip(self.graph.traced.paths, self.graph.traced.avals, strict=True):
            if have.get(path) != tuple(aval.shape):
                came = f"got shape {have[path]}" if path in have else "which is not there"
                raise ValueError(
                    f"`params` must be what `find_branches` was given: {path!r} of shape {tuple(aval.shape)}, "
                    f"{came}."
                )

    def check_arrays(self, params: PyTree, caller: str) -> None:
        """Raises as `check` does, and a TypeError for parameters without values that the host can read."""
        for path, leaf in zip(*flatten_with_paths(params)[:2], strict=True):
            if isinstance(leaf, Tracer | jax.ShapeDtypeStruct):
                kind = "traced" if isinstance(leaf, Tracer) else "abstract"
                raise TypeError(
                    f"`params` must be arrays, got {kind} ones at {path!r}. Call `{caller}` outside of `jax.jit`, "
                    "on the values."
                )
        self.check(params)

    @property
    def size(self) -> int:
        """Entries of all parameters."""
        return sum(map(self.graph.size, range(len(self.graph.params))))

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole function."""
        return self.graph.flops(range(len(self.graph.nodes)))

    def _listed(self) -> str:
        return f"{', '.join(map(repr, self.keys()[:20]))} ({len(self)} in all)"

    def __str__(self) -> str:
        rows = [
            (b.name, f"{b.size:,}", f"{b.flops:,}", b.added_to, b.inside, b.source) for b in self.branches
        ]
        columns = ("branch", "parameters", "FLOPs", "added to", "part of", "source")
        text = table_text(columns, rows, numbers=("parameters", "FLOPs"))
        if not self.fixed:
            return text
        return f"{text}\n\n{table_text(('fixed', 'because'), self.fixed)}"

    __repr__ = __str__
