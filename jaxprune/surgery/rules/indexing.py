"""gather, scatter and dynamic slices: whole axes pass through, indexed ones stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune.surgery.axes import Axes, Axis, Reason, freeze, fresh, size_of, unify
from jaxprune.surgery.rules.rule import Kept, Rule, shape_of

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


def _gather_resize(eqn: JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept) -> dict[str, Any]:
    del outs
    sizes = zip(eqn.params["slice_sizes"], ins[0], strict=True)
    return {"slice_sizes": tuple(kept.size(a) if n == size_of(a) else n for n, a in sizes)}


def _scatter(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = ins
    why = reason._replace(text=_INDEXED)
    freeze(indices[-1], why)
    index_axes = list(indices[:-1])
    scatter_dims = [dim for dim in range(len(updates)) if dim not in numbers.update_window_dims]
    for dim, axis in zip(scatter_dims, index_axes, strict=True):
        unify(updates[dim], axis, reason)
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


RULES = {
    "gather": Rule(_gather, resize=_gather_resize),
    **dict.fromkeys(
        ("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"),
        Rule(_scatter),
    ),
    "dynamic_slice": Rule(_dynamic_slice, resize=_dynamic_slice_resize),
    "dynamic_update_slice": Rule(_dynamic_update_slice),
}
