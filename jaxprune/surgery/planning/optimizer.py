"""Optimizer states: arrays that belong to a parameter are sliced as the parameter is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.opt_state import Owner, flat_arrays, is_projected, owners
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.inference.kept import small_shape
from jaxprune.surgery.inference.model import KeptAxes
from jaxprune.surgery.slicing import take

Shapes = Mapping[str, tuple[int, ...]]


def shrink_opt_state(
    opt_state: PyTree, shapes: Shapes, kept: KeptAxes, min_dim_size_to_factor: int = 128
) -> PyTree:
    """Slices the arrays of an optimizer state that belong to a parameter."""
    opt_state = _shrink_flat(opt_state, shapes, kept)
    paths, _, _ = flatten_with_paths((opt_state,))
    rest = iter(zip(paths, owners(opt_state, list(shapes)), strict=True))
    nodes, treedef = jax.tree.flatten(opt_state, is_leaf=_is_special)
    small = []
    for node in nodes:
        leaves, inner = jax.tree.flatten(node)
        named = [next(rest) for _ in leaves]
        if _is_factored(node):
            small.append(_shrink_factored(node, named, shapes, kept, min_dim_size_to_factor))
            continue
        if is_projected(node):
            _check_untouched(named, shapes, kept)
        cut = [
            _shrink_one(path, leaf, own, shapes, kept)
            for (path, own), leaf in zip(named, leaves, strict=True)
        ]
        small.append(jax.tree.unflatten(inner, cut))
    return jax.tree.unflatten(treedef, small)


def _shrink_flat(opt_state: PyTree, shapes: Shapes, kept: KeptAxes) -> PyTree:
    """Slices the arrays that concatenate all parameters into one vector."""
    size = sum(math.prod(shape) for shape in shapes.values())
    flat = flat_arrays(opt_state, owners(opt_state, list(shapes)), size)
    if not flat:
        return opt_state
    in_a_row = [_kept_entries(shape, kept[path]).ravel() for path, shape in shapes.items()]
    mask = np.concatenate(in_a_row)
    leaves, treedef = jax.tree.flatten(opt_state)
    for i in flat:
        leaves[i] = take(leaves[i], [None] * (leaves[i].ndim - 1) + [mask])
    return jax.tree.unflatten(treedef, leaves)


def _kept_entries(shape: tuple[int, ...], masks: Any) -> np.ndarray:
    kept = np.ones(shape, bool)
    for dim, mask in enumerate(masks):
        if mask is not None:
            kept &= mask.reshape([-1 if i == dim else 1 for i in range(len(shape))])
    return kept


def _shrink_one(path: str, leaf: Any, owner: Owner | None, shapes: Shapes, kept: KeptAxes) -> Any:
    have = np.shape(leaf)
    if owner is None or have == () or all(mask is None for mask in kept[owner.path]):
        return leaf
    shape, masks = shapes[owner.path], kept[owner.path]
    if owner.axis is not None:
        # SM3 has one statistic per entry of each axis, with or without the other axes.
        shape = tuple(n if i == owner.axis else 1 for i, n in enumerate(shape))
        if len(have) == 1:
            shape, masks = (shape[owner.axis],), (masks[owner.axis],)
    extra = len(have) - len(shape)  # a history of updates has axes before the parameter's
    if extra >= 0 and all(n in (1, m) for n, m in zip(have[extra:], shape, strict=True)):
        masks = [None if n == 1 else m for n, m in zip(have[extra:], masks, strict=True)]
        return take(leaf, [None] * extra + masks)
    raise ValueError(
        f"the optimizer state has an array of shape {have} at {path.removeprefix('0/')!r}. It belongs to the "
        f"parameter {owner.path!r} of shape {shapes[owner.path]}, but it can't be sliced: its shape does not fit."
    )


def _is_special(node: Any) -> bool:
    return _is_factored(node) or is_projected(node)


def _check_untouched(named: list[tuple[str, Owner | None]], shapes: Shapes, kept: KeptAxes) -> None:
    for path, owner in named:
        if owner is not None and len(shapes[owner.path]) > 1 and any(m is not None for m in kept[owner.path]):
            raise ValueError(
                f"the optimizer state has GaLore's low-rank memory of {owner.path!r} at "
                f"{path.removeprefix('0/')!r}, which can't be sliced. Initialize a new state with "
                "tx.init(plan.shrink(params))."
            )


def _is_factored(node: Any) -> bool:
    """Whether these are Adafactor's second moments: the means of a parameter over its two largest axes."""
    return {"v_row", "v_col", "v"} <= set(getattr(node, "_fields", ()))


def _shrink_factored(
    state: Any,
    named: list[tuple[str, Owner | None]],
    shapes: Shapes,
    kept: KeptAxes,
    min_dim_size_to_factor: int,
) -> Any:
    rows, treedef = jax.tree.flatten(state.v_row)
    columns, wholes = jax.tree.leaves(state.v_col), jax.tree.leaves(state.v)
    before = state._fields[: state._fields.index("v_row")]
    first_row = sum(len(jax.tree.leaves(getattr(state, field))) for field in before)
    out: list[tuple[Any, Any, Any]] = []
    for (path, owner), row, column, whole in zip(named[first_row:], rows, columns, wholes, strict=False):
        if owner is None:
            raise ValueError(
                f"the optimizer state has factored moments at {path.removeprefix('0/')!r}, which is not the "
                "path of a parameter."
            )
        shape, masks = shapes[owner.path], kept[owner.path]
        small = small_shape(shape, masks)
        if np.shape(whole) == shape and np.shape(row) == (1,):
            out.append((row, column, take(whole, masks)))
            continue
        # Each moment lacks one axis: v_row the largest, v_col the second largest. Together they represent the
        # product row * column / mean(row). Which axes are the largest may change.
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
