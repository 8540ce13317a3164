"""Which output of a function is the new value of which parameter."""

from __future__ import annotations

from typing import Any

import jax

from jaxprune.healing.running_statistics import equinox_states
from jaxprune.params import PyTree
from jaxprune.shrinking.compacting import state_by_path
from jaxprune.surgery.inference.model import State


def new_values(params: PyTree, outputs: PyTree, state: State | None) -> dict[int, int]:
    """Position of a parameter -> position of the output that is its new value.

    Outputs are paired by `state`, as in `jp.find_groups`, or by their paths; Equinox's `State`s by what they hold.
    """
    params, outputs = _numbered(params), _numbered(outputs)
    pairs: dict[int, int] = {}
    if state is not None:
        return _paired(*state(params, outputs))
    for old, new in zip(equinox_states(params), equinox_states(outputs), strict=False):
        if jax.tree.structure(old) == jax.tree.structure(new):
            pairs |= _paired(old, new)
    taken = set(pairs.values())
    by_path = _paired(*state_by_path(params, outputs))
    return {old: new for old, new in by_path.items() if new not in taken} | pairs


def _numbered(tree: PyTree) -> PyTree:
    """The tree with the position of each leaf in its place."""
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, range(len(leaves)))


def _paired(old: Any, new: Any) -> dict[int, int]:
    olds, news = jax.tree.leaves(old), jax.tree.leaves(new)
    if len(olds) != len(news):
        raise ValueError(
            f"`state` must return as many old values as new ones, got {len(olds)} and {len(news)} leaves."
        )
    return dict(zip(olds, news, strict=True))
