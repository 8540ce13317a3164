"""Which leaves of a tree of parameters may be pruned, and trees that match it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.holes import check_hidden, without_hidden
from jaxprune.lookahead import paired, weights_of
from jaxprune.patterns import Pattern, matches, patterns_of
from jaxprune.tree_nodes import Leaf, PyTree, flatten_with_paths, is_float_array, leaves_of
from jaxprune.weight_names import is_embedding, is_output, is_weight

__all__ = [
    "Pattern", "PyTree", "Where", "aligned", "flatten_with_paths", "is_float_array", "is_kept_whole",
    "mask_leaves", "prunable", "prunable_leaves", "resolved",
]  # fmt: skip

# Which leaves to prune: None for the default, a tree of bools (or a prefix of one), or a function that gives it.
Where = PyTree | Callable[[PyTree], PyTree] | None


def prunable(
    params: PyTree,
    include: Pattern | Iterable[Pattern] | None = None,
    exclude: Pattern | Iterable[Pattern] = (),
) -> PyTree:
    """Tree of Python bools: which leaves of `params` may be pruned.

    The default is all float leaves with two or more axes, except those whose names or layers are those of biases,
    scales, statistics, norms, embeddings, position tables, tokens, codebooks, recurrent states, or adapters
    (LoRA). Names are read alike in all frameworks, nested or flat (`model.embed_tokens.weight`). `include`
    replaces the default, `...` in `include` stands for the default, and `exclude` removes leaves.

    Args:
      params: pytree of arrays (or `jax.ShapeDtypeStruct`s).
      include: None for the default, or patterns. A pattern is a regular expression that matches a whole path or
        a whole leading part of it (up to a `/` or `.`, so the path of a module selects all its leaves), a
        predicate `(path, leaf) -> bool`, an NNX filter (a type of variables such as `nnx.Param`, or an object
        such as `nnx.PathContains("kernel")`), or `...` (the default).
      exclude: patterns of leaves to remove from the selection of `include`.

    Returns:
      A tree like `params` with True at the leaves to prune.

    Raises:
      ValueError: if a pattern matches no leaf, is not a regular expression, or includes a leaf without a float
        dtype or without axes; if `params` has no leaves.
      TypeError: if a pattern is none of these kinds, or a predicate does not take a path and a leaf.

    Warns:
      UserWarning: if the default selects an output layer that is the same array as an embedding.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"Dense_0": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
      ...           "Embed_0": {"embedding": jnp.ones((5, 3))}}
      >>> jp.prunable(params)
      {'Dense_0': {'bias': False, 'kernel': True}, 'Embed_0': {'embedding': False}}
      >>> jp.prunable(params, include=(..., "Embed_0"), exclude="Dense_.*/kernel")
      {'Dense_0': {'bias': False, 'kernel': False}, 'Embed_0': {'embedding': True}}
    """
    leaves, treedef = leaves_of(params), jax.tree.structure(params)
    if not leaves:
        raise ValueError("`params` has no leaves: there is nothing to prune.")
    chosen, named = [False] * len(leaves), set()
    for pattern in patterns_of("include", (...,) if include is None else include):
        for i in _default(leaves) if pattern is ... else matches("include", pattern, leaves):
            if pattern is not ...:
                _check_can_be_pruned(leaves[i].path, leaves[i].value)
                named.add(i)
            chosen[i] = True
    for pattern in patterns_of("exclude", exclude):
        for i in _default(leaves) if pattern is ... else matches("exclude", pattern, leaves):
            chosen[i] = False
    _warn_of_tied(leaves, [flag and i not in named for i, flag in enumerate(chosen)])
    return jax.tree.unflatten(treedef, chosen)


def prunable_leaves(tree: PyTree, where: Where, leaves: list[Leaf] | None = None) -> list[int]:
    """Positions, in `jax.tree.leaves(tree)`, of the leaves to prune; for lookahead's pair those of the fast weights.

    `leaves` are `leaves_of` the tree (of the fast weights), if the caller already has them.
    """
    tree, where = weights_of(tree), weights_of(where)
    leaves = leaves_of(tree) if leaves is None else leaves
    flags = _default_flags(leaves) if where is None else _flags(tree, resolved(tree, where, "where"))
    chosen = []
    for i, (leaf, flag) in enumerate(zip(leaves, flags, strict=True)):
        path, leaf = leaf.path, leaf.value
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"`where` must hold Python bools, got {flag!r} at {path!r}.")
        if flag:
            if not is_float_array(leaf):
                kind = getattr(leaf, "dtype", type(leaf).__name__)
                raise TypeError(
                    f"`where` is True at {path!r}, which is {kind}: only floating-point arrays can be pruned."
                )
            chosen.append(i)
    if not chosen:
        raise ValueError(
            f"there is nothing to prune: none of the {len(leaves)} leaves is selected. "
            "Select some with `where=jp.prunable(params, include=...)`."
        )
    return chosen


def _default_flags(leaves: list[Leaf]) -> list[bool]:
    """The leaves of `prunable(params)` for the leaves of params."""
    if not leaves:
        raise ValueError("`params` has no leaves: there is nothing to prune.")
    chosen = set(_default(leaves))
    flags = [i in chosen for i in range(len(leaves))]
    _warn_of_tied(leaves, flags)
    return flags


def _flags(tree: PyTree, where: PyTree) -> list[Any]:
    """The leaf of `where` for each leaf of the tree; the tree may have holes where `where` has leaves."""
    if jax.tree.structure(tree) == jax.tree.structure(where):
        return jax.tree.leaves(where)
    where, hidden = without_hidden(tree, where)
    for path in (path for path, flag in hidden.items() if np.ndim(flag) == 0 and flag):
        raise ValueError(
            f"`where` is True at {path!r}, which this optimizer does not see: optax.partition or "
            "optax.masked gives it to another one. Leave it out, or wrap the optimizer of all parameters."
        )
    return aligned(tree, where, "where")


def aligned(tree: PyTree, other: PyTree, argument: str) -> list[Any]:
    """The leaf of `other` for each leaf of `tree`, in the order of `tree`.

    `other` has the paths of `tree`, or is a prefix of it: a scalar stands for the whole subtree at its path.
    """
    if jax.tree.structure(tree) == jax.tree.structure(other):
        return jax.tree.leaves(other)
    paths, _, _ = flatten_with_paths(tree)
    other_paths, other_leaves, _ = flatten_with_paths(other)
    if paths == other_paths:
        return other_leaves
    scalar = {
        path for path, leaf in zip(other_paths, other_leaves, strict=True) if not getattr(leaf, "ndim", 0)
    }
    if len(scalar) == len(other_leaves):
        try:
            return jax.tree.leaves(jax.tree.broadcast(other, tree))
        except ValueError:
            pass  # containers of another kind, which may hold the same paths
    by_path = dict(zip(other_paths, other_leaves, strict=True))
    found = [_stand_in(path, by_path, scalar) for path in paths]
    missing = [path for path, name in zip(paths, found, strict=True) if name is None]
    extra = [path for path in other_paths if path not in set(found)]
    if not missing and not extra and len(by_path) == len(other_paths):
        return [by_path[name] for name in found if name is not None]
    difference = (
        f"it lacks {missing[0]!r}"
        if missing
        else f"it has an extra leaf {extra[0]!r}"
        if extra
        else "it differs"
    )
    raise ValueError(
        f"`{argument}` must have the tree structure of the parameters, but {difference} "
        f"({len(other_paths)} leaves against {len(paths)}; a scalar may stand for the subtree at its path)."
    )


def resolved(tree: PyTree, given: PyTree | Callable[[PyTree], PyTree], argument: str) -> PyTree:
    """`given(tree)` if `given` is a function, else `given` (a module that can be called is a tree)."""
    if isinstance(given, type) or type(given).__module__ == "flax.nnx.filterlib":
        raise TypeError(
            f"`{argument}` must be a tree, or a function of the parameters, got {given!r}. Pass a filter as "
            "`include`: where=lambda params: jp.prunable(params, include=nnx.Param)."
        )
    is_function = callable(given) and (
        jax.tree_util.all_leaves([given]) or isinstance(given, jax.tree_util.Partial)
    )
    if not is_function:
        return given
    result = given(tree)
    if result is None or (callable(result) and jax.tree_util.all_leaves([result])):
        raise TypeError(
            f"`{argument}` is a function of the parameters and must return a tree like them, got {result!r}."
        )
    return result


def _stand_in(path: str, known: Container[str], scalar: Container[str]) -> str | None:
    """The path itself if it is known, else the longest leading part of it that holds a scalar."""
    if path in known:
        return path
    parts = path.split("/")
    leading = ("/".join(parts[:length]) for length in range(len(parts) - 1, -1, -1))
    return next((part for part in leading if part in scalar), None)


def mask_leaves(params: PyTree, masks: PyTree, argument: str = "masks") -> list[Any]:
    """Leaves of `masks` in the order of the leaves of `params`, checked against them."""
    masks, hidden = without_hidden(params, paired(resolved(params, masks, argument), params))
    check_hidden(hidden, argument)
    paths, leaves, _ = flatten_with_paths(params)
    found = aligned(params, masks, argument)
    for path, w, mask in zip(paths, leaves, found, strict=True):
        if isinstance(mask, bool | np.bool_):
            continue
        if not hasattr(mask, "dtype") or mask.dtype != jnp.bool_:
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise TypeError(f"`{argument}` must hold bool arrays (True = keep), got {kind} at {path!r}.")
        shape = tuple(getattr(w, "shape", ()))
        fits = mask.ndim in (0, len(shape)) and all(
            m in (1, n) for m, n in zip(mask.shape, shape, strict=False)
        )
        if not fits:
            raise ValueError(
                f"`{argument}` must broadcast to the parameters, got shape {mask.shape} at {path!r} "
                f"of shape {shape}."
            )
    return found


def is_kept_whole(mask: Any) -> bool:
    """Whether a mask is a scalar known to be True: its leaf is not prunable. (A scalar False prunes all of it.)"""
    if isinstance(mask, bool | np.bool_):
        return bool(mask)
    return jnp.ndim(mask) == 0 and not isinstance(mask, jax.core.Tracer) and bool(mask)


def _default(leaves: list[Leaf]) -> list[int]:
    """Positions of the leaves that names and layers show to be weights."""
    by_path = {leaf.path: leaf for leaf in leaves}
    return [i for i, leaf in enumerate(leaves) if is_weight(leaf, by_path)]


def _warn_of_tied(leaves: list[Leaf], chosen: list[bool]) -> None:
    """Warns if an output layer to prune is the same array as an embedding, which is not pruned.

    Only their names in the tree tell the two apart. After an update, or under `jit`, they are two arrays.
    """
    alike: dict[int, list[Leaf]] = {}
    for leaf in leaves:
        alike.setdefault(id(leaf.value), []).append(leaf)
    for leaf, flag in zip(leaves, chosen, strict=True):
        others = [other.path for other in alike[id(leaf.value)] if other is not leaf]
        embeddings = [path for path in others if is_embedding(path)]
        if flag and is_output(leaf.path) and embeddings and all(map(_is_either, others)):
            warnings.warn(
                f"{leaf.path!r} is the same array as the embedding {embeddings[0]!r}, and only the first would be "
                f"pruned, which unties them. Pass where=lambda params: jp.prunable(params, exclude={leaf.path!r}), "
                "or include both.",
                stacklevel=3,
            )


def _is_either(path: str) -> bool:
    return is_embedding(path) or is_output(path)


def _check_can_be_pruned(path: str, leaf: Any) -> None:
    if not is_float_array(leaf):
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        raise ValueError(
            f"`include` selects {path!r}, which is {kind}: only floating-point arrays can be pruned. "
            "Leave it out of `include`, or add it to `exclude`."
        )
    if len(leaf.shape) == 0:
        raise ValueError(
            f"`include` selects {path!r}, which is a scalar: only arrays with axes can be pruned."
        )
