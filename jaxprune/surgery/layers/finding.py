"""Finding the branches of a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from jaxprune.jaxprs import as_abstract, is_array_leaf, trace
from jaxprune.params import PyTree
from jaxprune.surgery.layers.blocks import blocks_of
from jaxprune.surgery.layers.branches import Branch, Branches, Fixed
from jaxprune.surgery.layers.graph import Graph, flat_graph
from jaxprune.surgery.layers.names import names_of, unique
from jaxprune.surgery.layers.plain import place_of, plain_layers
from jaxprune.surgery.layers.scan_bodies import DeadInside, dead_inside, flops_inside, scan_bodies
from jaxprune.surgery.layers.stacks import Stack, stacks
from jaxprune.surgery.layers.sums import Residual, residuals


def find_branches(fn: Callable, params: PyTree, *inputs: Any, plain: bool = False) -> Branches:
    """Finds the layers of any function that can be left out.

    The function is traced once. A branch is an operand of an addition that another operand passes by: the
    branch is computed from that one (looked at through scaling, casts, padding and pooling), or both from one
    value of which the other is a projection. The branch consists of all that nothing uses any more once the
    addition loses the operand, so it needs no names: a norm before it belongs to it, a norm after the sum
    does not, and weights that other layers share are kept. Every step of a `scan` over stacked parameters is a
    branch as well, and so is each such operand in the body of the scan, which is removed in all steps. The
    branches of one module together are a block.

    Not seen are sums that are no additions (`stack` and `sum`, `at[...].add`), those inside of `cond` and `while`,
    layers that give a stream and a second one different values (WaveNet), and the parts
    of a sum that is scaled as a whole.

    Args:
      fn: function `fn(params, *inputs)`.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      *inputs: example inputs, pytrees of arrays or `jax.ShapeDtypeStruct`s; only shapes and dtypes matter.
      plain: whether layers without a residual are branches too, where what goes in has the shape and dtype of what
        comes out and nothing else passes the layer by (equal hidden layers of an MLP). In their place their input is
        left. That is a guess: shapes do not tell whether the next layer can use it.

    Returns:
      The branches. Print them for a table of parameters, FLOPs, what each is added to, and of the sums
      that are fixed and why.

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
    branches += _plain(graph, found, branches) if plain else []
    fixed = [Fixed(graph.nodes[r.node].source, r.reason) for r in sorted([*refused, *more])]
    tree, abstract = jax.tree.map(lambda x: as_abstract(x) if is_array_leaf(x) else x, (params, inputs))
    return Branches(tuple(branches), tuple(dict.fromkeys(fixed)), tree, abstract, graph, fn)


def _sums(graph: Graph, found: Sequence[Residual], of_scans: Sequence[Stack]) -> list[Branch]:
    """The branches that are one operand or one step each, in order of the source."""
    paths = graph.traced.paths
    used = [r.dead.params or _used(graph, r.dead.nodes) for r in found]
    inner = _in_scans(graph)
    of_inner = [dead.params for _, _, dead in inner]
    names = names_of(graph, [*used, *(s.params for s in of_scans), *of_inner], taken := set())
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
            drops=(
                (node.place, residual.operand),
                *((graph.nodes[index].place, operand) for index, operand in residual.also),
            ),
        )
        out.append((residual.node, branch))
    for stack, name in zip(of_scans, names[len(found) :], strict=False):
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
    before: dict[tuple[int, int], str] = {}
    for (index, residual, dead), name in zip(inner, names[len(names) - len(inner) :], strict=True):
        body = scan_bodies(graph)[index].graph
        drops = ((residual.node, residual.operand), *residual.also)
        here = before.get((index, residual.skip), "a value of each step")
        before[index, body.nodes[residual.node].outs[0]] = f"the sum after {name}, in each step"
        branch = Branch(
            name,
            "sum",
            sum(map(graph.size, dead.params)),
            flops_inside(graph, dead),
            tuple(paths[i] for i in sorted(dead.params)),
            body.nodes[residual.node].source,
            "the carry of each step" if residual.skip in body.inputs else here,
            drops=tuple((body.nodes[at].place, operand) for at, operand in drops),
        )
        out.append((index, branch))
    return [branch for _, branch in sorted(out, key=lambda pair: pair[0])]


def _plain(graph: Graph, found: Sequence[Residual], branches: Sequence[Branch]) -> list[Branch]:
    """The plain layers beside the branches."""
    taken = {r.node for r in found}.union(*(r.dead.nodes for r in found))
    layers = plain_layers(graph, taken)
    names = names_of(graph, [layer.dead.params for layer in layers], {b.name for b in branches})
    return [
        Branch(
            name,
            "plain",
            sum(map(graph.size, layer.dead.params)),
            graph.flops(layer.dead.nodes),
            tuple(graph.traced.paths[i] for i in sorted(layer.dead.params)),
            graph.nodes[graph.maker[layer.after]].source,
            "nothing: its input takes its place",
            swaps=((place_of(graph, layer.after), place_of(graph, layer.before)),),
        )
        for name, layer in zip(names, layers, strict=True)
    ]


def _in_scans(graph: Graph) -> list[tuple[int, Residual, DeadInside]]:
    """Operands that can be dropped in all steps of a scan over layers: the scan, the operand and what dies."""
    found = []
    alive = {i for i, p in enumerate(graph.params) if graph.count(p)}
    for index, body in scan_bodies(graph).items():
        for residual in residuals(body.graph)[0]:
            drops = ((residual.node, residual.operand), *residual.also)
            dead = dead_inside(graph, [(body.graph.nodes[at].place, operand) for at, operand in drops])
            if index not in dead.nodes and not alive <= dead.params:
                found.append((index, residual, dead))
    return found


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
    places = graph.places
    parts = {
        b.name: b.params
        for b in branches
        if b.kind == "sum" and not b.inside and all(at in places for at, _ in b.drops)
    }
    by_name, out = {b.name: b for b in branches}, list(branches)
    taken = set(by_name)
    for module, names in blocks_of(parts, sum(b.kind == "step" for b in branches)).items():
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
