"""Optimizer states: the parameter that each of their arrays belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.holes import is_hole
from jaxprune.params import PyTree, flatten_with_paths

Names = tuple[str, ...]


class Owner(NamedTuple):
    """path: path of the parameter; axis: its axis for a statistic of one axis (SM3), else None."""

    path: str
    axis: int | None = None


def owners(opt_state: PyTree, paths: Sequence[str]) -> list[Owner | None]:
    """The parameter that each array of an optimizer state belongs to, in the order of `jax.tree.leaves`.

    Moments, averages and accumulated gradients form trees like the parameters. Such a tree is found by its paths,
    whatever the names of the optimizer and its fields: the paths of all parameters and no others lie below its
    root. A hole of `optax.masked` or `optax.partition` stands for the whole subtree in its place. The outermost
    such root counts, so that a module of the model may be called `mu`, or `trace`.

    Args:
      opt_state: state of any optimizer.
      paths: paths of the parameters, as from `flatten_with_paths`.
    """
    known = {_names(path): path for path in paths}
    entries, holes = _entries(opt_state)
    found: list[Owner | None] = [None] * (len(entries) - len(holes))
    if not known:
        return found
    # A state that was made for a part of the parameters only has no root with all paths.
    for complete in (True, False):
        for root, below in list(_roots(entries, known, found, complete)):
            for entry in below:
                if entry.leaf is not None:
                    found[entry.leaf] = _owner(entry.names[root:], known)
    return found


def flat_arrays(opt_state: PyTree, found: Sequence[Owner | None], size: int) -> set[int]:
    """Positions of arrays with all weights in one row, as of `optax.flatten`: (size,) or (history, size).

    Such an array counts only if its node of the state holds no array that belongs to a single parameter.

    Args:
      opt_state: state of any optimizer.
      found: the `owners` of the state.
      size: number of all weights.
    """
    entries = [entry for entry in _entries(opt_state)[0] if entry.leaf is not None]
    owned = {
        entry.names[:depth]
        for entry, owner in zip(entries, found, strict=True)
        if owner is not None
        for depth in range(len(entry.names))
    }
    return {
        i
        for i, (entry, leaf) in enumerate(zip(entries, jax.tree.leaves(opt_state), strict=True))
        if jnp.ndim(leaf) in (1, 2)
        and jnp.shape(leaf)[-1] == size
        and jnp.issubdtype(leaf.dtype, jnp.inexact)
        and found[i] is None
        and entry.names[:-1] not in owned
    }


class _Entry(NamedTuple):
    """names: its path, split; leaf: its position in `jax.tree.leaves`, None for a hole."""

    names: Names
    leaf: int | None


def _entries(opt_state: PyTree) -> tuple[list[_Entry], set[int]]:
    hole = object()
    marked = jax.tree.map(
        lambda x: hole if x is None or is_hole(x) else x, opt_state, is_leaf=lambda x: x is None or is_hole(x)
    )
    # Below an index, so that a field `params` of the state itself keeps its name.
    paths, leaves, _ = flatten_with_paths((marked,))
    entries, holes = [], set()
    for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        if leaf is hole:
            holes.add(i)
        entries.append(_Entry(_names(path)[1:], None if leaf is hole else i - len(holes)))
    return entries, holes


def _roots(
    entries: list[_Entry], known: dict[Names, str], found: list[Owner | None], complete: bool
) -> Iterator[tuple[int, list[_Entry]]]:
    """Outermost nodes that mirror the parameters: the depth of each and the entries below it."""
    stack = [(0, entries)]
    while stack:
        depth, below = stack.pop()
        is_free = all(entry.leaf is None or found[entry.leaf] is None for entry in below)
        if is_free and _mirrors(depth, below, known, complete):
            yield depth, below
            continue
        children: dict[str, list[_Entry]] = {}
        for entry in below:
            if len(entry.names) > depth:
                children.setdefault(entry.names[depth], []).append(entry)
        stack += [(depth + 1, child) for child in children.values()]


def _mirrors(depth: int, below: list[_Entry], known: dict[Names, str], complete: bool) -> bool:
    held: set[str] = set()
    holes: set[Names] = set()
    for entry in below:
        if entry.leaf is None:
            holes.add(_canonical(entry.names[depth:]))
        elif (owner := _owner(entry.names[depth:], known)) is None:
            return False
        else:
            held.add(owner.path)
    if not held or not complete:
        return bool(held)
    return all(
        path in held or any(names[:i] in holes for i in range(len(names) + 1))
        for names, path in known.items()
    )


def _owner(names: Names, known: dict[Names, str]) -> Owner | None:
    names = _canonical(names)
    if names in known:
        return Owner(known[names])
    if names and names[-1].isdigit() and names[:-1] in known:
        return Owner(known[names[:-1]], int(names[-1]))
    return None


def _canonical(names: Names) -> Names:
    """The names without the leading `params` of Linen variables."""
    return names[1:] if len(names) > 1 and names[0] == "params" else names


def _names(path: str) -> Names:
    return tuple(path.split("/")) if path else ()


def is_projected(node: Any) -> bool:
    """Whether this is GaLore's state: moments of projected gradients, whose entries belong to no single weight."""
    return {"projector", "base_optimizer_state"} <= set(getattr(node, "_fields", ()))
