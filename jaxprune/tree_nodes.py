"""Leaves of any pytree with their canonical paths, and the nodes of frameworks that hold them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

PyTree = Any


class Leaf(NamedTuple):
    """A leaf of a pytree.

    path: canonical path; keys: the container keys that lead to it or to its NNX variable; value: the leaf;
    holder: the NNX variable, Linen box or Equinox layer that holds it directly, or None.
    """

    path: str
    keys: tuple[Any, ...]
    value: Any
    holder: Any


def leaves_of(tree: PyTree) -> list[Leaf]:
    """The leaves of a pytree, in the order of `jax.tree.leaves`."""
    wrappers = _wrapper_types()
    leaves = []
    for names, keys, value, holder in _walk(tree, [], (), wrappers, wrappers + _module_types()):
        if len(names) > 1 and names[0] == "params":
            names = names[1:]
        leaves.append(Leaf("/".join(names), keys, value, holder))
    return leaves


def flatten_with_paths(tree: PyTree) -> tuple[list[str], list[Any], jax.tree_util.PyTreeDef]:
    """Leaves of a pytree with their canonical paths, such as `Dense_0/kernel` or `layers/0/kernel`.

    The same model has the same paths as a Linen dict, an NNX `State`, an Equinox module, or nested lists:
    a leading `params/` (Linen) and the `.value` of an NNX `Variable` or of a Linen metadata box
    (`nn.Partitioned`) are left out.

    Returns:
      (paths, leaves, treedef), in the order of `jax.tree.leaves`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    return [leaf.path for leaf in leaves_of(tree)], leaves, treedef


def split_leaves(
    tree: PyTree, is_chosen: Callable[[Any], bool]
) -> tuple[list[Any], Callable[[Sequence[Any]], PyTree]]:
    """The chosen leaves of a tree, and a function that returns the tree with other leaves in their places."""
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, leaf in enumerate(leaves) if is_chosen(leaf)]

    def join(chosen: Sequence[Any]) -> PyTree:
        whole = list(leaves)
        for i, leaf in zip(places, chosen, strict=True):
            whole[i] = leaf
        return jax.tree.unflatten(treedef, whole)

    return [leaves[i] for i in places], join


def is_float_array(leaf: Any) -> bool:
    """Whether a leaf is an array (or abstract array) of a floating-point dtype."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and hasattr(leaf, "shape") and jnp.issubdtype(dtype, jnp.floating)


def is_variable(node: Any) -> bool:
    """Whether a node is an NNX variable."""
    nnx = sys.modules.get("flax.nnx")  # a tree can only hold a Variable when someone imported nnx
    return nnx is not None and isinstance(node, nnx.Variable)


def equinox_layer(node: Any) -> str | None:
    """The name of the class of `equinox.nn` that a node is an instance of, such as "Linear"."""
    for base in type(node).__mro__:
        if base.__module__.startswith("equinox.nn."):
            return base.__name__
    return None


def _wrapper_types() -> tuple[type, ...]:
    """The types of NNX variables and Linen boxes: nodes around one parameter that add nothing to its path."""
    nnx, meta = sys.modules.get("flax.nnx"), sys.modules.get("flax.core.meta")
    return (*((nnx.Variable,) if nnx else ()), *((meta.AxisMetadata,) if meta else ()))


def _module_types() -> tuple[type, ...]:
    equinox = sys.modules.get("equinox")
    return (equinox.Module,) if equinox else ()


def _walk(
    node: PyTree,
    names: list[str],
    keys: tuple[Any, ...],
    wrappers: tuple[type, ...],
    holders: tuple[type, ...],
) -> Iterator[tuple[list[str], tuple[Any, ...], Any, Any]]:
    """(names of the path, keys, value, holder) of each leaf below a node."""
    is_wrapper = isinstance(node, wrappers)
    children, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda child: child is not node and isinstance(child, holders)
    )
    for way, child in children:
        inside = names + [str(_key(key)) for key in way[is_wrapper:]]
        raw = keys if is_wrapper else keys + tuple(_key(key) for key in way)
        if child is not node and isinstance(child, holders):
            yield from _walk(child, inside, raw, wrappers, holders)
        else:
            is_direct = is_wrapper or (isinstance(node, holders) and len(way) == 1)
            yield inside, raw, child, node if is_direct else None


def _key(key: Any) -> Any:
    match key:
        case DictKey(key=name) | GetAttrKey(name=name) | FlattenedIndexKey(key=name) | SequenceKey(idx=name):
            return name
    return str(key).strip(".[]'\"")
