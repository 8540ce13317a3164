"""Trees without some of their leaves."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jax

from jaxprune.params import PyTree

_GONE: Any = object()


def without_leaves(tree: PyTree, gone: Collection[int]) -> PyTree:
    """A tree without the leaves at some positions of `jax.tree.leaves`.

    A dict loses the key, and a dict that becomes empty is removed from the dict around it. In a list, a tuple, an
    NNX State or a module of Equinox the place is kept and contains None, so that no path changes.
    """
    leaves, treedef = jax.tree.flatten(tree)
    marked = jax.tree.unflatten(treedef, [_GONE if i in gone else leaf for i, leaf in enumerate(leaves)])
    cleaned = _cleaned(marked)
    return ({} if type(tree) is dict else None) if cleaned is _GONE else cleaned


def _cleaned(node: Any) -> Any:
    if node is _GONE:
        return _GONE
    if type(node) is dict:
        left = {key: new for key, value in node.items() if (new := _cleaned(value)) is not _GONE}
        return left if left or not node else _GONE

    def inner(value: Any) -> Any:
        new = _cleaned(value) if value is _GONE or type(value) is dict else value
        return None if new is _GONE else new

    return jax.tree.map(inner, node, is_leaf=lambda x: type(x) is dict)
