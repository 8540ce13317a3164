"""gather, scatter and dynamic slices: whole axes pass through, constant indices select, others freeze."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import bind
from jaxprune.surgery.inference.axes import Axes, Axis, Reason, freeze, fresh, reach, reshaped, size_of, unify
from jaxprune.surgery.inference.rules.rule import (
    Kept,
    Reduction,
    Rule,
    Values,
    highest,
    lowest,
    one,
    shape_of,
    zero,
)
from jaxprune.surgery.inference.rules.selection import selected
from jaxprune.surgery.inference.rules.shapes import sliced

_INDEXED = "indexed by values (an embedding's vocabulary, a table's rows)"


def _gather(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = ins[0], ins[1]
    why = reason._replace(text=_INDEXED)
    shape = shape_of(eqn)
    batch_dims = [dim for dim in range(len(shape)) if dim not in numbers.offset_dims]
    freeze(indices[-1], why)
    index_axes = list(indices[:-1])
    for dim, index_dim in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        unify(operand[dim], index_axes[index_dim], reason)
    out: list[Axis] = [()] * len(shape)
    for dim, axis in zip(batch_dims, index_axes, strict=True):
        out[dim] = axis
    window = [
        dim
        for dim in range(len(operand))
        if dim not in numbers.collapsed_slice_dims and dim not in numbers.operand_batching_dims
    ]
    for dim_out, dim in zip(numbers.offset_dims, window, strict=True):
        # A full slice can only start at 0: its units keep their places.
        if sizes[dim] == size_of(operand[dim]):
            out[dim_out] = operand[dim]
        else:
            freeze(operand[dim], why)
            out[dim_out] = fresh(shape[dim_out], why)
    for dim in numbers.collapsed_slice_dims:
        freeze(operand[dim], why)
    return [tuple(out)]


def _known_gather(eqn: JaxprEqn, ins: Sequence[Axes], values: Values, reason: Reason) -> list[Axes] | None:
    """Indices that are constant select known entries."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = ins[0], ins[1]
    starts = _starts(values, numbers.start_index_map, operand, sizes)
    if starts is None or numbers.operand_batching_dims or not _covers(starts, operand, sizes):
        return None
    out: list[Axis] = [()] * len(shape_of(eqn))
    batch = [dim for dim in range(len(out)) if dim not in numbers.offset_dims]
    pieces = _pieces(starts, operand, sizes, indices[:-1], numbers.collapsed_slice_dims, reason)
    if pieces is None:
        return None
    for dim, axis in zip(batch, indices[:-1], strict=True):
        out[dim] = axis
    window = [dim for dim in range(len(operand)) if dim not in numbers.collapsed_slice_dims]
    for dim_out, dim in zip(numbers.offset_dims, window, strict=True):
        out[dim_out] = pieces.get(dim, operand[dim])
    return [tuple(out)]


def _gather_evaluate(
    eqn: JaxprEqn, args: Sequence[Any], ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept
) -> list[Any]:
    numbers, sizes = eqn.params["dimension_numbers"], list(eqn.params["slice_sizes"])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    window = [dim for dim in range(len(ins[0])) if dim not in gone]
    indices = _moved(args[1], numbers.start_index_map, ins[0], sizes, kept)
    for dim_out, dim in zip(numbers.offset_dims, window, strict=True):
        sizes[dim] = kept.size(outs[0][dim_out])
    return bind(eqn, [args[0], indices], slice_sizes=tuple(sizes))


def _known_scatter(eqn: JaxprEqn, ins: Sequence[Axes], values: Values, reason: Reason) -> list[Axes] | None:
    """Indices that are constant are known entries."""
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = ins
    sizes, window = _window_sizes(numbers, operand, updates)
    starts = _starts(values, numbers.scatter_dims_to_operand_dims, operand, sizes)
    if starts is None or numbers.operand_batching_dims or not _covers(starts, operand, sizes):
        return None
    pieces = _pieces(starts, operand, sizes, indices[:-1], numbers.inserted_window_dims, reason)
    if pieces is None:
        return None
    scattered = [dim for dim in range(len(updates)) if dim not in numbers.update_window_dims]
    for dim, axis in zip(scattered, indices[:-1], strict=True):
        unify(updates[dim], axis, reason)
    for dim_update, dim in zip(numbers.update_window_dims, window, strict=True):
        unify(updates[dim_update], pieces.get(dim, operand[dim]), reason)
    return [operand]


def _scatter_evaluate(
    eqn: JaxprEqn, args: Sequence[Any], ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept
) -> list[Any]:
    del outs
    numbers = eqn.params["dimension_numbers"]
    sizes, _ = _window_sizes(numbers, ins[0], ins[2])
    indices = _moved(args[1], numbers.scatter_dims_to_operand_dims, ins[0], sizes, kept)
    return bind(eqn, [args[0], indices, *args[2:]])


def _window_sizes(numbers: Any, operand: Axes, updates: Axes) -> tuple[list[int], list[int]]:
    """The size of an update along each dimension of the operand, and the dimensions of its window."""
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    window = [dim for dim in range(len(operand)) if dim not in gone]
    sizes = [1] * len(operand)
    for dim_update, dim in zip(numbers.update_window_dims, window, strict=True):
        sizes[dim] = size_of(updates[dim_update])
    return sizes, window


def _starts(
    values: Values, dims: Sequence[int], operand: Axes, sizes: Sequence[int]
) -> dict[int, np.ndarray] | None:
    """The starts of the windows along each dimension that they don't cover, if these are known and in bounds."""
    places = {dim: i for i, dim in enumerate(dims) if sizes[dim] != size_of(operand[dim])}
    if not all(isinstance(size_of(operand[dim]), int) for dim in places):
        return None
    indices = values(1)
    if indices is None:
        return None
    starts = {dim: np.asarray(indices)[..., i] for dim, i in places.items()}
    for dim, at in starts.items():
        size = size_of(operand[dim])
        # A table of many lookups (a bias for each pair of positions) is not a selection.
        if at.size > 8 * size or np.any((at < 0) | (at > size - sizes[dim])):
            return None
    return starts


def _covers(starts: Mapping[int, Any], operand: Axes, sizes: Sequence[int]) -> bool:
    """Whether every dimension that the windows don't cover is indexed."""
    return all(dim in starts or sizes[dim] == size_of(axis) for dim, axis in enumerate(operand))


def _pieces(
    starts: Mapping[int, np.ndarray],
    operand: Axes,
    sizes: Sequence[int],
    index_axes: Axes,
    collapsed: Sequence[int],
    reason: Reason,
) -> dict[int, Axis] | None:
    """The parts of the operand's axes that constant indices select, or None if they have no known form.

    One window is a slice of each axis. Single entries along one axis are a selection of it; the indices are their
    positions.
    """
    if math.prod(map(size_of, index_axes)) == 1:
        return {
            dim: sliced(operand[dim], int(at.item()), int(at.item()) + sizes[dim], 1, sizes[dim], reason)
            for dim, at in starts.items()
        }
    if len(starts) != 1 or not set(starts) <= set(collapsed):
        return None
    ((dim, at),) = starts.items()
    axis = selected(operand[dim], at.ravel().tolist(), reason)
    for index_axis, part in zip(index_axes, reshaped((axis,), at.shape, reason), strict=True):
        unify(index_axis, part, reason)
    return {dim: axis}


def _moved(indices: Any, dims: Sequence[int], operand: Axes, sizes: Sequence[int], kept: Kept) -> Any:
    """Indices into the kept entries of an operand's axes."""
    for i, dim in enumerate(dims):
        axis = operand[dim]
        if sizes[dim] != size_of(axis) and kept.size(axis) != size_of(axis):
            before = np.cumsum(kept.mask(axis)) - kept.mask(axis)
            indices = indices.at[..., i].set(jnp.asarray(before, indices.dtype)[indices[..., i]])
    return indices


def _scatter(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = ins
    why = reason._replace(text=_INDEXED)
    freeze(indices[-1], why)
    index_axes = list(indices[:-1])
    scatter_dims = [dim for dim in range(len(updates)) if dim not in numbers.update_window_dims]
    for dim, axis in zip(scatter_dims, index_axes, strict=True):
        unify(updates[dim], axis, reason)
        if dim in _batch_dims(numbers, scatter_dims):
            continue
        if eqn.primitive.name == "scatter":
            freeze(axis, reason._replace(text="written at positions that are computed"))
        else:
            reach(axis, reason)
    for dim, index_dim in zip(
        numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
    ):
        unify(operand[dim], index_axes[index_dim], reason)
    window = [
        dim
        for dim in range(len(operand))
        if dim not in numbers.inserted_window_dims and dim not in numbers.operand_batching_dims
    ]
    for dim_update, dim in zip(numbers.update_window_dims, window, strict=True):
        if size_of(updates[dim_update]) == size_of(operand[dim]):
            unify(updates[dim_update], operand[dim], reason)
        else:
            freeze(updates[dim_update], why)
            freeze(operand[dim], why)
    for dim in numbers.inserted_window_dims:
        freeze(operand[dim], why)
    return [operand]


def _batch_dims(numbers: Any, scatter_dims: Sequence[int]) -> set[int]:
    """The dimensions of the updates along which each is written into its own part of the operand."""
    return {scatter_dims[dim] for dim in numbers.scatter_indices_batching_dims}


def _scatters(identity):
    """Several updates may meet at a place, where they are summed (or multiplied, or compared)."""

    def reduces(eqn: JaxprEqn, ins: Sequence[Axes]) -> list[Reduction]:
        numbers = eqn.params["dimension_numbers"]
        scattered = [dim for dim in range(len(ins[2])) if dim not in numbers.update_window_dims]
        own = _batch_dims(numbers, scattered)
        return [Reduction(2, tuple(dim for dim in scattered if dim not in own), identity)]

    return reduces


def _dynamic_slice(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    why = reason._replace(text="sliced at a position that is computed")
    out: list[Axis] = []
    for axis, size in zip(ins[0], shape_of(eqn), strict=True):
        whole = size == size_of(axis)
        if not whole:
            freeze(axis, why)
        out.append(axis if whole else fresh(size, why))
    return [tuple(out)]


def _dynamic_slice_resize(
    eqn: JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept
) -> dict[str, Any]:
    del eqn, ins
    return {"slice_sizes": tuple(kept.size(axis) for axis in outs[0])}


def _dynamic_update_slice(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del eqn
    why = reason._replace(text="updated at a position that is computed")
    for axis, update in zip(ins[0], ins[1], strict=True):
        if size_of(axis) == size_of(update):
            unify(axis, update, reason)
        else:
            freeze(axis, why)
            freeze(update, why)
    return [ins[0]]


_SCATTERS = {
    "scatter": None,
    "scatter-add": _scatters(zero),
    "scatter-sub": _scatters(zero),
    "scatter-mul": _scatters(one),
    "scatter-max": _scatters(lowest),
    "scatter-min": _scatters(highest),
}

RULES = {
    "gather": Rule(_gather, evaluate=_gather_evaluate, infer_known=_known_gather),
    **{
        name: Rule(_scatter, evaluate=_scatter_evaluate, infer_known=_known_scatter, reduces=reduces)
        for name, reduces in _SCATTERS.items()
    },
    "dynamic_slice": Rule(_dynamic_slice, resize=_dynamic_slice_resize),
    "dynamic_update_slice": Rule(_dynamic_update_slice),
}
