"""Holes in trees: what `optax.masked` and `optax.partition` hide from the optimizer inside them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax

from jaxprune.tree_nodes import PyTree, flatten_with_paths


def is_hole(node: Any) -> bool:
    """Whether a node is a placeholder for parameters of another optimizer."""
    return isinstance(node, optax.MaskedNode)


def filled(tree: PyTree, value: Any) -> PyTree:
    """The tree with a leaf in place of each hole."""
    return jax.tree.map(lambda x: value if is_hole(x) else x, tree, is_leaf=is_hole)


def without_hidden(tree: PyTree, other: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """`other`, a tree of all parameters, without the leaves that `tree` hides; and these leaves by their paths.

    If a leaf of `other` stands for several leaves of `tree` and some of those are hidden, it is in both.
    """
    hole = object()
    paths, leaves, _ = flatten_with_paths(filled(tree, hole))
    holes = {path for path, leaf in zip(paths, leaves, strict=True) if leaf is hole}
    if not holes:
        return other, {}
    seen = [path for path in paths if path not in holes]
    other_paths, other_leaves, treedef = flatten_with_paths(other)
    hidden, rest = {}, []
    for path, leaf in zip(other_paths, other_leaves, strict=True):
        if any(_is_below(path, h) or _is_below(h, path) for h in holes):
            hidden[path] = leaf
            leaf = leaf if any(_is_below(s, path) for s in seen) else optax.MaskedNode()
        rest.append(leaf)
    return jax.tree.unflatten(treedef, rest), hidden


def check_hidden(hidden: dict[str, Any], argument: str = "masks") -> None:
    """Raises ValueError for masks that prune parameters which the optimizer does not see."""
    for path, mask in hidden.items():
        is_traced = isinstance(mask, jax.core.Tracer)
        if not (np.ndim(mask) == 0 if is_traced else np.all(mask)):
            raise ValueError(
                f"`{argument}` prunes {path!r}, which this optimizer does not see: optax.partition or "
                "optax.masked gives it to another one. Set its mask to True, or wrap the optimizer of all parameters."
            )


def _is_below(path: str, root: str) -> bool:
    return path == root or root == "" or path.startswith(root + "/")
