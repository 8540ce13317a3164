"""Names of branches, from the paths of the parameters that they alone use."""

from __future__ import annotations

from collections.abc import Sequence

from jaxprune.surgery.layers.graph import Graph


def names_of(graph: Graph, params: Sequence[frozenset[int]], taken: set[str]) -> list[str]:
    """A name for each set of parameters: the module that holds them and nothing of a set beside it.

    Args:
      graph: the function.
      params: the numbers of the parameters of each branch.
      taken: names that are given; the new ones are added.
    """
    paths = graph.traced.paths
    names = []
    for of in params:
        beside = [paths[i] for other in params if not (other <= of or of <= other) for i in other - of]
        name = unique(_module(graph, of, beside) or "branch", taken)
        names.append(name)
    return names


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken."""
    out, count = name, 2
    while out in taken:
        out, count = f"{name}#{count}", count + 1
    taken.add(out)
    return out


def _module(graph: Graph, of: frozenset[int], beside: Sequence[str]) -> str:
    if not of:
        return ""
    heaviest = graph.traced.paths[max(sorted(of), key=graph.size)].split("/")
    # Where a collection such as `batch_stats` holds some of them, those with the heaviest leaf give the name.
    split = [path for path in (graph.traced.paths[i].split("/") for i in of) if path[0] == heaviest[0]]
    depth = 0
    while depth < len(heaviest) and all(path[: depth + 1] == heaviest[: depth + 1] for path in split):
        depth += 1
    depth = max(depth, 1)
    while depth < len(heaviest) and any(is_below(path, "/".join(heaviest[:depth])) for path in beside):
        depth += 1
    return "/".join(heaviest[:depth])


def is_below(path: str, module: str) -> bool:
    """Whether a path is a module's, or one below it."""
    return path == module or path.startswith(f"{module}/")
