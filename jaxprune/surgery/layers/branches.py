"""Branches: the layers of a model that can be left out, and what can't and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax

from jaxprune.jaxprs import as_abstract, is_array_leaf, trace
from jaxprune.params import PyTree
from jaxprune.surgery.layers.blocks import blocks_of
from jaxprune.surgery.layers.graph import Graph, Place, flat_graph
from jaxprune.surgery.layers.names import names_of, unique
from jaxprune.surgery.layers.stacks import Stack, stacks
from jaxprune.surgery.layers.sums import Residual, residuals
from jaxprune.tables import table_text


class Removed(NamedTuple):
    """What goes when branches are left out.

    nodes: equations; params: whole parameters; steps: node of a scan -> its steps; slices: parameter -> the
    places of its first axis; size: entries of parameters; flops: floating-point operations.
    """

    nodes: frozenset[int]
    params: frozenset[int]
    steps: Mapping[int, frozenset[int]]
    slices: Mapping[int, frozenset[int]]
    size: int
    flops: int


@dataclass(frozen=True)
class Branch:
    """A layer that can be left out: what is added to a residual stream, several such, or a step of a scan.

    Attributes:
      name: the module of its parameters, unique in the model.
      kind: "sum" for one operand of an addition, "block" for several, "step" for a step of a scan.
      size: entries of the parameters that nothing uses once it alone is gone.
      flops: floating-point operations that go with it, two a multiply-add.
      params: the paths of these parameters; those of a step lose a slice.
      source: the source line of the addition, or of the scan.
      added_to: what it is added to: what is left in its place.
      inside: the name of the smallest branch that this one is a part of, or "".
      drops: (place, operand) of additions that lose an operand.
      steps: (place, step) of scans that lose a step.
    """

    name: str
    kind: Literal["sum", "block", "step"]
    size: int
    flops: int
    params: tuple[str, ...]
    source: str
    added_to: str
    inside: str = ""
    drops: tuple[tuple[Place, int], ...] = field(default=(), repr=False)
    steps: tuple[tuple[Place, int], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return self.name


class Fixed(NamedTuple):
    """A sum or a scan that stays as it is, and why."""

    source: str
    reason: str


@dataclass(frozen=True, eq=False)
class Branches:
    """The branches of a model, in order of its source; printing them shows a table.

    Attributes:
      branches: the branches.
      fixed: the sums and scans that can't go, and why.
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

    def named(self, patterns: str | Branch | Iterable[str | Branch], argument: str) -> list[str]:
        """Names of the branches that have these names, or that a pattern matches.

        Args:
          patterns: names, or regular expressions that match a whole name or a leading part of it, up to a slash.
          argument: where they come from, for error messages.

        Raises:
          ValueError: one that matches no branch, or is no regular expression.
        """
        names = []
        for pattern in (patterns,) if isinstance(patterns, str | Branch) else patterns:
            text = str(pattern)
            found = [name for name in self.keys() if name == text]
            if not found:
                try:
                    expression = re.compile(f"(?:{text})(?:/.*)?")
                except re.error as error:
                    raise ValueError(
                        f"`{argument}` pattern {text!r} is no regular expression ({error})."
                    ) from None
                found = [name for name in self.keys() if expression.fullmatch(name)]
            if not found:
                raise ValueError(
                    f"`{argument}` pattern {text!r} matched no branch. There are: {self._listed()}."
                )
            names += found
        return list(dict.fromkeys(names))

    def removed(self, names: Iterable[str]) -> Removed:
        """What goes when these branches are left out together.

        It can be more than the branches' own sizes sum to: weights that they share.

        Args:
          names: of branches.
        """
        graph = self.graph
        places = {node.place: index for index, node in enumerate(graph.nodes)}
        chosen = [self[name] for name in names]
        dead = graph.dead_after({(places[at], operand) for branch in chosen for at, operand in branch.drops})
        steps: dict[int, frozenset[int]] = {}
        for place, step in (pair for branch in chosen for pair in branch.steps):
            if places[place] not in dead.nodes:
                steps[places[place]] = steps.get(places[place], frozenset()) | {step}
        of_stack = {stack.node: stack for stack in stacks(graph)[0]}
        slices = {p: steps[index] for index in steps for p in of_stack[index].params}
        size = sum(map(graph.size, dead.params))
        size += sum(len(gone) * graph.size(p) // graph.traced.avals[p].shape[0] for p, gone in slices.items())
        flops = graph.flops(dead.nodes)
        flops += sum(len(gone) * graph.flops([i]) // of_stack[i].length for i, gone in steps.items())
        return Removed(dead.nodes, dead.params, steps, slices, size, flops)

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


def find_branches(fn: Callable, params: PyTree, *inputs: Any) -> Branches:
    """Finds the layers of any function that can be left out.

    The function is traced once. A branch is an operand of an addition that another operand passes by: the
    branch is computed from that one (looked at through scaling, casts, padding and pooling), or both from one
    value of which the other is a projection. The branch consists of all that nothing uses any more once the
    addition loses the operand, so it needs no names: a norm before it belongs to it, a norm after the sum
    does not, and weights that other layers share stay. Every step of a `scan` over stacked parameters is a
    branch as well, and the branches of one module together are a block.

    Sums that are no additions (`stack` and `sum`, `at[...].add`), and those inside of `cond`, `while` and the
    body of a scan are not seen.

    Args:
      fn: function `fn(params, *inputs)`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      *inputs: example inputs, pytrees of arrays or `jax.ShapeDtypeStruct`s; only shapes and dtypes matter.

    Returns:
      The branches. Print them for a table of parameters, FLOPs, what each is added to, and of the sums that
      stay and why.

    Raises:
      ValueError: two arrays of `params` have one path.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> layer = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 3))}
      >>> params = {"layer_0": layer, "layer_1": layer, "head": jnp.ones((3, 2))}
      >>> def fn(params, x):
      ...     for name in ("layer_0", "layer_1"):
      ...         x = x + jnp.tanh(x @ params[name]["up"]) @ params[name]["down"]
      ...     return x @ params["head"]
      >>> branches = jp.find_branches(fn, params, jnp.ones((1, 3)))
      >>> [(branch.name, branch.size, branch.flops, branch.added_to) for branch in branches]
      [('layer_0', 48, 96, 'input 0'), ('layer_1', 48, 96, 'the sum after layer_0')]

    References:
      Men et al., ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, 2024,
      arXiv:2403.03853 (whole layers of one architecture; here they follow from the equations).
    """
    graph = flat_graph(trace(fn, params, inputs))
    found, refused = residuals(graph)
    of_scans, more = stacks(graph)
    branches = _with_blocks(graph, _sums(graph, found, of_scans))
    fixed = [Fixed(graph.nodes[r.node].source, r.reason) for r in sorted([*refused, *more])]
    tree, abstract = jax.tree.map(lambda x: as_abstract(x) if is_array_leaf(x) else x, (params, inputs))
    return Branches(tuple(branches), tuple(dict.fromkeys(fixed)), tree, abstract, graph, fn)


def _sums(graph: Graph, found: Sequence[Residual], of_scans: Sequence[Stack]) -> list[Branch]:
    """The branches that are one operand or one step each, in order of the source."""
    paths = graph.traced.paths
    used = [r.dead.params or _used(graph, r.dead.nodes) for r in found]
    names = names_of(graph, [*used, *(s.params for s in of_scans)], taken := set())
    after = {graph.nodes[r.node].outs[0]: f"the sum after {n}" for r, n in zip(found, names, strict=False)}
    after.update(
        (graph.nodes[stack.node].outs[i], "the last step of a scan")
        for stack in of_scans
        for i in range(len(graph.nodes[stack.node].outs))
    )
    out: list[tuple[int, Branch]] = []
    for residual, name in zip(found, names, strict=False):
        node, dead = graph.nodes[residual.node], residual.dead
        around = [
            (len(other.dead.nodes), of_other)
            for other, of_other in zip(found, names, strict=False)
            if other.dead.nodes > dead.nodes
        ]
        branch = Branch(
            name,
            "sum",
            sum(map(graph.size, dead.params)),
            graph.flops(dead.nodes),
            tuple(paths[i] for i in sorted(dead.params)),
            node.source,
            _described(graph, residual.skip, after),
            min(around, default=(0, ""))[1],
            drops=((node.place, residual.operand),),
        )
        out.append((residual.node, branch))
    for stack, name in zip(of_scans, names[len(found) :], strict=True):
        node = graph.nodes[stack.node]
        size, flops = sum(map(graph.size, stack.params)), graph.flops([stack.node])
        for step in range(stack.length):
            before = step + 1 if node.eqn.params["reverse"] else step - 1
            at_first = not 0 <= before < stack.length
            branch = Branch(
                unique(f"{name}[{step}]", taken),
                "step",
                size // stack.length,
                flops // stack.length,
                tuple(paths[i] for i in sorted(stack.params)),
                node.source,
                _described(graph, stack.skip, after) if at_first else f"step {before}",
                steps=((node.place, step),),
            )
            out.append((stack.node, branch))
    return [branch for _, branch in sorted(out, key=lambda pair: pair[0])]


def _used(graph: Graph, nodes: Iterable[int]) -> frozenset[int]:
    """The parameters whose values some nodes take."""
    numbers = {value: i for i, value in enumerate(graph.params)}
    return frozenset(numbers[v] for i in nodes for v in graph.nodes[i].ins if v in numbers)


def _described(graph: Graph, value: int, after: Mapping[int, str]) -> str:
    """Where a value comes from, in words."""
    if value in after:
        return after[value]
    if value in graph.inputs:
        return graph.traced.input_paths[graph.inputs.index(value)]
    node = graph.nodes[graph.maker[value]]
    return f"{node.name} at {node.source}" if node.source else node.name


def _with_blocks(graph: Graph, branches: list[Branch]) -> list[Branch]:
    """The branches, with those of one module together as one more after them."""
    parts = {b.name: b.params for b in branches if b.kind == "sum" and not b.inside}
    by_name, out = {b.name: b for b in branches}, list(branches)
    places = {node.place: index for index, node in enumerate(graph.nodes)}
    taken = set(by_name)
    for module, names in blocks_of(parts).items():
        inside = [by_name[name] for name in names]
        drops = tuple(drop for branch in inside for drop in branch.drops)
        dead = graph.dead_after([(places[at], operand) for at, operand in drops])
        block = Branch(
            unique(module, taken),
            "block",
            sum(map(graph.size, dead.params)),
            graph.flops(dead.nodes),
            tuple(graph.traced.paths[i] for i in sorted(dead.params)),
            inside[-1].source,
            inside[0].added_to,
            drops=drops,
        )
        for branch in inside:
            at = out.index(branch)
            out[at] = Branch(**{**vars(branch), "inside": block.name})
        out.insert(max(out.index(b) for b in out if b.inside == block.name) + 1, block)
    return out
