"""Parameters: canonical paths over any pytree of arrays, and which of its leaves may be pruned."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

PyTree = Any
Pattern = str | Callable[[str, Any], bool] | EllipsisType
# Which leaves to prune: None for the default, a tree of bools (or a prefix of one), or a function that gives it.
Where = PyTree | Callable[[PyTree], PyTree] | None

# Names of leaves that hold no weights of a linear map, whatever their rank: attention biases are 2-D,
# stacked (scanned or vmapped) layers add a leading axis to every bias, scale and statistic.
_NOT_A_WEIGHT = re.compile(
    r"(.*_)?(bias|biases|beta|scale|gamma|gain|offset|mean|var|variance|cls|cls_token|class_token|mask_token)",
    re.IGNORECASE,
)
_EMBEDDING = re.compile(r".*embed(d(ing)?)?(s|ings)?(_?\d+)?|wte|wpe|.*embed_tokens|.*_emb", re.IGNORECASE)
_NORM = re.compile(r"(.*(norm|_ln|_bn)|ln|bn)([_.]?\w?\d*)?", re.IGNORECASE)
# Haiku's bias is `b`, but so may be the second matrix of a plain dict: it is a bias beside a `w`.
_BIAS_BESIDE = {"b": "w"}
# A module called `embed` or `norm` that keeps its table or scale under one of these neutral names.
_NEUTRAL = re.compile(r"w|weight|table", re.IGNORECASE)


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


def prunable(
    params: PyTree,
    include: Pattern | Iterable[Pattern] | None = None,
    exclude: Pattern | Iterable[Pattern] = (),
) -> PyTree:
    """Tree of Python bools: which leaves of `params` may be pruned.

    By default the float leaves with two or more axes that are not named a bias, scale, statistic or
    embedding. `include` replaces that default, `...` inside it stands for it, and `exclude` takes away.

    Args:
      params: pytree of arrays (or `jax.ShapeDtypeStruct`s).
      include: None for the default, or patterns. A pattern is a regular expression that matches a whole
        path or a whole leading part of it (so a module's path names all in it), a predicate
        `(path, leaf) -> bool`, or `...` (the default).
      exclude: patterns to leave out of what `include` selected.

    Returns:
      A tree like `params` with True at the leaves to prune.

    Raises:
      ValueError: a pattern matches no leaf, is no regular expression, or includes a leaf that has no
        float dtype or no axes; `params` has no leaves.

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
    paths, leaves, treedef = flatten_with_paths(params)
    if not leaves:
        raise ValueError("`params` has no leaves: there is nothing to prune.")
    chosen = [False] * len(leaves)
    if include is None:
        include = (...,)
    for pattern in _patterns("include", include):
        for i in _matches("include", pattern, paths, leaves):
            if pattern is not ...:
                _check_can_be_pruned(paths[i], leaves[i])
            chosen[i] = True
    for pattern in _patterns("exclude", exclude):
        for i in _matches("exclude", pattern, paths, leaves):
            chosen[i] = False
    return jax.tree.unflatten(treedef, chosen)


def prunable_leaves(tree: PyTree, where: Where) -> list[int]:
    """Positions, in `jax.tree.leaves(tree)`, of the leaves to prune."""
    where = prunable(tree) if where is None else where
    paths, leaves, _ = flatten_with_paths(tree)
    flags = aligned(tree, resolved(tree, where, "where"), "where")
    chosen = []
    for i, (path, leaf, flag) in enumerate(zip(paths, leaves, flags, strict=True)):
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
            "Name some with `where=jp.prunable(params, include=...)`."
        )
    return chosen


def aligned(tree: PyTree, other: PyTree, argument: str) -> list[Any]:
    """Leaves of `other` for each leaf of `tree`, in the order of `tree`.

    `other` has the paths of `tree`, or is a prefix of it: a scalar stands for all that `tree` has below it.
    """
    paths, _, treedef = flatten_with_paths(tree)
    other_paths, other_leaves, other_treedef = flatten_with_paths(other)
    if treedef == other_treedef or paths == other_paths:
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
        f"it lacks {missing[0]!r}" if missing else f"it has {extra[0]!r} besides" if extra else "it differs"
    )
    raise ValueError(
        f"`{argument}` must have the tree structure of the parameters, but {difference} "
        f"({len(other_paths)} leaves against {len(paths)}; a scalar may stand for all below its path)."
    )


def resolved(tree: PyTree, given: PyTree | Callable[[PyTree], PyTree], argument: str) -> PyTree:
    """`given(tree)` where `given` is a function, else `given` (a module that can be called is a tree)."""
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
    """The path itself if it is known, or else the longest leading part of it that holds a scalar."""
    if path in known:
        return path
    parts = path.split("/")
    leading = ("/".join(parts[:length]) for length in range(len(parts) - 1, -1, -1))
    return next((part for part in leading if part in scalar), None)


def mask_leaves(params: PyTree, masks: PyTree, argument: str = "masks") -> list[Any]:
    """Leaves of `masks` in the order of those of `params`, checked against them."""
    paths, leaves, _ = flatten_with_paths(params)
    found = aligned(params, resolved(params, masks, argument), argument)
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


def is_float_array(leaf: Any) -> bool:
    """Whether a leaf is an array (or abstract array) of a floating-point dtype."""
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and hasattr(leaf, "shape") and jnp.issubdtype(dtype, jnp.floating)


def is_weight(path: str, leaf: Any, paths: Container[str] = ()) -> bool:
    """The default rule of `prunable`, on one leaf; `paths` are those of the whole tree."""
    if not is_float_array(leaf) or len(leaf.shape) < 2:
        return False
    *parents, name = path.split("/")
    if _NOT_A_WEIGHT.fullmatch(name) or _EMBEDDING.fullmatch(name) or "batch_stats" in parents:
        return False
    if name in _BIAS_BESIDE and "/".join([*parents, _BIAS_BESIDE[name]]) in paths:
        return False
    in_module = parents[-1] if parents else ""
    if in_module.isdigit() and len(parents) > 1:  # `norms/0/weight`
        in_module = parents[-2]
    plain_matrix = len(leaf.shape) == 2 and _NEUTRAL.fullmatch(name)
    return not (plain_matrix and (_EMBEDDING.fullmatch(in_module) or _NORM.fullmatch(in_module)))


def _patterns(argument: str, patterns: Any) -> Sequence[Any]:
    if isinstance(patterns, str) or callable(patterns) or patterns is ...:
        return (patterns,)
    patterns = tuple(patterns)
    for pattern in patterns:
        if not (isinstance(pattern, str) or callable(pattern) or pattern is ...):
            raise TypeError(
                f"`{argument}` must hold path patterns (str), predicates (path, leaf) -> bool, or `...`, "
                f"got {pattern!r}."
            )
    return patterns


def _matches(argument: str, pattern: Pattern, paths: list[str], leaves: list[Any]) -> list[int]:
    if pattern is ...:
        known = set(paths)
        return [i for i, path in enumerate(paths) if is_weight(path, leaves[i], known)]
    if callable(pattern):
        return [i for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True)) if pattern(path, leaf)]
    try:
        expression = re.compile(f"(?:{pattern})(?:/.*)?")
    except re.error as error:
        raise ValueError(
            f"`{argument}` pattern {pattern!r} is not a regular expression ({error}). "
            "Write '.*' for any text, as in 'encoder/.*/kernel'."
        ) from None
    found = [i for i, path in enumerate(paths) if expression.fullmatch(path)]
    if not found:
        shown = ", ".join(repr(path) for path in paths[:20]) + (", ..." if len(paths) > 20 else "")
        raise ValueError(
            f"`{argument}` pattern {pattern!r} matched no parameter. There are: {shown} "
            f"({len(paths)} in all). Patterns are regular expressions on whole paths."
        )
    return found


def _check_can_be_pruned(path: str, leaf: Any) -> None:
    if not is_float_array(leaf):
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        raise ValueError(
            f"`include` names {path!r}, which is {kind}: only floating-point arrays can be pruned. "
            "Leave it out of `include`, or add it to `exclude`."
        )
    if len(leaf.shape) == 0:
        raise ValueError(f"`include` names {path!r}, which is a scalar: only arrays with axes can be pruned.")
