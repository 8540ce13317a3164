"""Canonical paths over any pytree of arrays."""

from __future__ import annotations

import sys
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

PyTree = Any


def flatten_with_paths(tree: PyTree) -> tuple[list[str], list[Any], jax.tree_util.PyTreeDef]:
    """Leaves of a pytree with their canonical paths, such as `Dense_0/kernel` or `layers/0/kernel`.

    The same model has the same paths as a Linen dict, an NNX `State`, an Equinox module, or nested lists:
    a leading `params/` (Linen) and the `.value` of an NNX `Variable` are left out.

    Returns:
      (paths, leaves, treedef), in the order of `jax.tree.leaves`.
    """
    nnx = sys.modules.get("flax.nnx")  # a tree can only hold a Variable when someone imported nnx
    is_variable = (lambda x: isinstance(x, nnx.Variable)) if nnx else (lambda x: False)
    outer, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)
    paths = []
    for keys, node in outer:
        base = [_key_name(key) for key in keys]
        if base and base[0] == "params" and len(base) > 1:
            base = base[1:]
        if is_variable(node):
            for inner, _ in jax.tree_util.tree_flatten_with_path(node)[0]:
                paths.append("/".join(base + [_key_name(key) for key in inner[1:]]))
        else:
            paths.append("/".join(base))
    leaves, treedef = jax.tree.flatten(tree)
    return paths, leaves, treedef


def _key_name(key: Any) -> str:
    match key:
        case DictKey(key=name) | GetAttrKey(name=name) | FlattenedIndexKey(key=name) | SequenceKey(idx=name):
            return str(name)
    return str(key).strip(".[]'\"")
