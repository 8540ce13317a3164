"""The function without its removed branches, on small parameters and on full ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs import Traced, as_abstract, is_array_leaf
from jaxprune.jaxprs.per_signature import per_signature
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.layers.branches import Branches
from jaxprune.surgery.layers.evaluation import MISSING, Bypassed, Scaled, run
from jaxprune.surgery.layers.finding import find_branches
from jaxprune.surgery.layers.graph import Place
from jaxprune.surgery.layers.scan_bodies import scan_bodies

Shapes = Mapping[str, tuple[int, ...]]


class LayerVerification(NamedTuple):
    """error: largest difference to the function with zeros for the branches; tolerance: what counts as equal."""

    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the small function computes what it must."""
        return self.error <= self.tolerance


def bypass(
    fn: Callable, tree: PyTree, removed: Sequence[str], shapes: Shapes, gone: Collection[str]
) -> Callable:
    """Function of small parameters that computes what `fn` computes without some branches.

    Args:
      fn: the full function.
      tree: its parameters, abstract.
      removed: the names of the branches.
      shapes: path -> shape of each parameter that is left.
      gone: the paths of the others.
    """
    full_paths, full_leaves, full_treedef = flatten_with_paths(tree)

    @per_signature
    def found(full: PyTree, inputs: tuple[Any, ...]) -> tuple[Traced, Bypassed]:
        branches = find_branches(fn, full, *inputs, plain=True)
        return branches.graph.traced, bypassed(branches, removed, gone)

    @functools.wraps(fn)
    def small_fn(params: PyTree, *inputs: Any) -> Any:
        by_path = _checked(params, shapes)
        avals = [
            as_abstract(by_path[path]) if path in by_path else leaf
            for path, leaf in zip(full_paths, full_leaves, strict=True)
        ]
        full = jax.tree.unflatten(
            full_treedef,
            [
                jax.ShapeDtypeStruct(old.shape, new.dtype, weak_type=new.weak_type)
                if is_array_leaf(old)
                else old
                for old, new in zip(full_leaves, avals, strict=True)
            ],
        )
        traced, mode = found(full, inputs)
        return run(traced, [by_path.get(path, MISSING) for path in traced.paths], inputs, mode)

    return small_fn


def scaled(branches: Branches, scales: Mapping[str, Any]) -> Scaled:
    """What multiplies the output of each branch by a number, in the function that was analysed.

    Args:
      branches: those of the function.
      scales: name -> a number, which may be traced.
    """
    drops: dict[Place, dict[int, Any]] = {}
    steps: dict[Place, list[Any]] = {}
    swaps: dict[Place, tuple[Place, Any]] = {}
    lengths = {node.place: node.eqn.params.get("length", 0) for node in branches.graph.nodes}
    for name, scale in scales.items():
        for place, operand in branches[name].drops:
            there = drops.setdefault(place, {})
            there[operand] = there[operand] * scale if operand in there else scale
        for place, step in branches[name].steps:
            steps.setdefault(place, [1.0] * lengths[place])[step] = scale
        for after, before in branches[name].swaps:
            swaps[after] = before, scale
    stacked = {place: jnp.stack([jnp.asarray(s, jnp.float32) for s in of]) for place, of in steps.items()}
    return Scaled(drops, stacked, swaps)


def masked_error(
    fn: Callable, params: PyTree, inputs: tuple[Any, ...], removed: Iterable[str], small: Sequence[Any]
) -> float:
    """Largest difference of results to those of `fn` with zeros for branches, relative to the largest one."""
    branches = find_branches(fn, params, *inputs, plain=True)
    arrays = [x for x in jax.tree.leaves(params) if is_array_leaf(x)]
    mode = scaled(branches, dict.fromkeys(checked_names(branches, removed), 0.0))
    expected = jax.tree.leaves(run(branches.graph.traced, arrays, inputs, mode))
    errors = [0.0]
    for a, b in zip(small, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) if a.size else 0.0
        errors.append(error if np.isfinite(error) else float("inf"))
    return max(errors)


def checked_names(branches: Branches, removed: Iterable[str], argument: str = "fn") -> list[str]:
    """The names, all of which a function must have; `argument` says where it comes from.

    Raises:
      ValueError: it lacks one.
    """
    names = list(removed)
    for name in names:
        if name not in branches:
            there = f"{', '.join(map(repr, branches.keys()[:20]))} ({len(branches)} in all)"
            raise ValueError(
                f"`{argument}` has no branch {name!r} on these parameters and inputs. There are: {there or 'none'}. "
                "It must be, or call, the function that was analysed."
            )
    return names


def bypassed(branches: Branches, removed: Sequence[str], gone: Collection[str]) -> Bypassed:
    """What leaves out branches; `gone` are the paths of the parameters that no other part may use.

    Raises:
      ValueError: the function has not the branches, or uses one of these parameters elsewhere.
    """
    graph = branches.graph
    names = checked_names(branches, removed)
    found = branches.removed(names)
    for path in sorted(set(gone) - {graph.traced.paths[i] for i in found.params}):
        raise ValueError(
            f"`fn` uses {path!r} beside the branches that were removed, unlike the function that was analysed."
        )
    drops: dict[Place, frozenset[int]] = {}
    for name in names:
        for place, operand in branches[name].drops:
            drops[place] = drops.get(place, frozenset()) | {operand}
    steps = {}
    for index, of in found.steps.items():
        mask = np.ones(graph.nodes[index].eqn.params["length"], bool)
        mask[sorted(of)] = False
        steps[graph.nodes[index].place] = mask
    dead = {graph.nodes[i].place for i in found.nodes}
    for scan, nodes in found.inside.items():
        dead |= {scan_bodies(graph)[scan].graph.nodes[i].place for i in nodes}
    swaps = {after: before for name in names for after, before in branches[name].swaps}
    return Bypassed(drops, steps, frozenset(dead), swaps)


def _checked(params: PyTree, shapes: Shapes) -> dict[str, Any]:
    """Path -> array of small parameters.

    Raises:
      ValueError: a path or a shape is not that of the small parameters.
    """
    paths, leaves, _ = flatten_with_paths(params)
    by_path = {p: leaf for p, leaf in zip(paths, leaves, strict=True) if is_array_leaf(leaf)}
    hint = "Pass `plan.shrink(params)`."
    for path, leaf in by_path.items():
        if path not in shapes:
            raise ValueError(f"`params` has {path!r}, which the plan removes or does not know. {hint}")
        if np.shape(leaf) != shapes[path]:
            raise ValueError(
                f"{path!r} must have the small shape {shapes[path]}, got {np.shape(leaf)}. {hint}"
            )
    for path in shapes.keys() - by_path.keys():
        raise ValueError(f"`params` lacks {path!r}. {hint}")
    return by_path
