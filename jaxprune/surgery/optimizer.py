"""Optimizer states: whatever mirrors the parameters is sliced as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.model import KeptAxes
from jaxprune.surgery.slicing import take


def shrink_opt_state(
    opt_state: PyTree,
    shapes: Mapping[str, tuple[int, ...]],
    kept: KeptAxes,
    min_dim_size_to_factor: int = 128,
) -> PyTree:
    """Slices the arrays of an optimizer state that belong to a parameter."""
    factored = jax.tree.leaves(opt_state, is_leaf=_is_factored)
    if any(map(_is_factored, factored)):
        small = [
            _shrink_factored(node, shapes, kept, min_dim_size_to_factor) if _is_factored(node) else node
            for node in factored
        ]
        outer = jax.tree.structure(opt_state, is_leaf=_is_factored)
        done = {id(node) for node in small if _is_factored(node)}
        merged = jax.tree.unflatten(outer, small)
        return _shrink_mirrors(merged, shapes, kept, lambda x: id(x) in done)
    return _shrink_mirrors(opt_state, shapes, kept, lambda x: False)


def _shrink_mirrors(tree: PyTree, shapes: Mapping[str, tuple[int, ...]], kept: KeptAxes, skip: Any) -> PyTree:
    nodes, outer = jax.tree.flatten(tree, is_leaf=skip)
    holes = jax.tree.unflatten(outer, [None if skip(node) else node for node in nodes])
    paths, leaves, treedef = flatten_with_paths(holes)
    small = [_shrink_one(path, leaf, shapes, kept) for path, leaf in zip(paths, leaves, strict=True)]
    filled = jax.tree.unflatten(treedef, small)
    rest = iter([node for node in nodes if skip(node)])
    return jax.tree.map(lambda x: next(rest) if x is None else x, filled, is_leaf=lambda x: x is None)


def _owner(path: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The parameter whose path is the longest tail of a path in the state."""
    names = path.split("/")
    return next((tail for i in range(len(names) + 1) if (tail := "/".join(names[i:])) in shapes), None)


def _shrink_one(path: str, leaf: Any, shapes: Mapping[str, tuple[int, ...]], kept: KeptAxes) -> Any:
    owner = _owner(path, shapes)
    have = np.shape(leaf)
    if owner is None or have == () or all(mask is None for mask in kept[owner]):
        return leaf
    shape = shapes[owner]
    extra = len(have) - len(shape)  # a history of updates has axes before the parameter's
    if extra >= 0 and all(n in (1, m) for n, m in zip(have[extra:], shape, strict=True)):
        masks = [None if n == 1 else m for n, m in zip(have[extra:], kept[owner], strict=True)]
        return take(leaf, [None] * extra + masks)
    raise ValueError(
        f"the optimizer state has an array of shape {have} at {path!r}, which belongs to the parameter "
        f"{owner!r} of shape {shape}: how to slice it is not known."
    )


def _is_factored(node: Any) -> bool:
    """Adafactor's second moments: per parameter the means over its largest and second largest axis."""
    return getattr(node, "_fields", None) is not None and {"v_row", "v_col", "v"} <= set(node._fields)


def _shrink_factored(
    state: Any, shapes: Mapping[str, tuple[int, ...]], kept: KeptAxes, min_dim_size_to_factor: int
) -> Any:
    paths, rows, treedef = flatten_with_paths(state.v_row)
    columns, wholes = jax.tree.leaves(state.v_col), jax.tree.leaves(state.v)
    out: list[tuple[Any, Any, Any]] = []
    for path, row, column, whole in zip(paths, rows, columns, wholes, strict=True):
        owner = _owner(path, shapes)
        if owner is None:
            raise ValueError(f"the optimizer state has factored moments at {path!r}, which is no parameter.")
        shape, masks = shapes[owner], kept[owner]
        small = tuple(n if m is None else int(m.sum()) for n, m in zip(shape, masks, strict=True))
        if np.shape(whole) == shape and np.shape(row) == (1,):
            out.append((row, column, take(whole, masks)))
            continue
        # Each moment lacks one axis: v_row the largest, v_col the second largest. They stand for the product
        # row * column / mean(row); which axes are the largest may change.
        second, first = map(int, np.argsort(shape)[-2:])
        row, column = jnp.expand_dims(row, first), jnp.expand_dims(column, second)
        mean = row.mean(axis=second, keepdims=True)
        row, column, mean = (
            take(x, [None if n == 1 else m for n, m in zip(x.shape, masks, strict=True)])
            for x in (row, column, mean)
        )
        product = row * column / mean
        new_second, new_first = map(int, np.argsort(small)[-2:])
        nothing = jnp.zeros((1,), product.dtype)
        if small[new_second] < min_dim_size_to_factor:
            out.append((nothing, nothing, product))
        else:
            out.append((product.mean(axis=new_first), product.mean(axis=new_second), nothing))
    v_row, v_col, v = (jax.tree.unflatten(treedef, list(part)) for part in zip(*out, strict=True))
    return state._replace(v_row=v_row, v_col=v_col, v=v)
