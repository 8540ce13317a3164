"""Lookups by positions: gathers, scatters and slices whose indices are positions on the axis that they index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn
from jax.lax import GatherScatterMode

from jaxprune.jaxprs import shape_of
from jaxprune.surgery.inference.axes import Axes, Reason, fresh, size_of, unify
from jaxprune.surgery.inference.frames import Frame, Routed
from jaxprune.surgery.inference.positions import Columns, Held, Shifted, axes_of

SCATTERS = ("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub")


def gather(
    frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason
) -> list[Any] | None:
    operand, indices = facts
    numbers = eqn.params["dimension_numbers"]
    if isinstance(operand, Columns | Shifted):
        return None
    if indices is not None:
        single = [dim for dim, size in enumerate(eqn.params["slice_sizes"]) if size == 1]
        taken = _indexed(eqn, ins, indices, numbers.start_index_map, single, reason)
        if taken is None:
            return None
        frame.routed[id(eqn)] = Routed((taken, *ins[1:]), {}, tuple(axes_of(indices)))
        ins[0] = taken
    return [operand]


def scatter(
    frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason
) -> list[Any] | None:
    operand, indices, updates = facts
    numbers = eqn.params["dimension_numbers"]
    if indices is None or operand is not None or updates is not None:
        return None
    dims = numbers.scatter_dims_to_operand_dims
    taken = _indexed(eqn, ins, indices, dims, numbers.inserted_window_dims, reason)
    if taken is None:
        return None
    frame.routed[id(eqn)] = Routed((taken, *ins[1:]), {}, tuple(axes_of(indices)))
    ins[0] = taken
    return [None]


def _indexed(
    eqn: JaxprEqn,
    ins: Sequence[Axes],
    indices: Any,
    dims: Sequence[int],
    single: Sequence[int],
    reason: Reason,
) -> Axes | None:
    """The axes of an operand, with new ones where it is indexed by positions on its axis; None if it is otherwise."""
    if isinstance(indices, Held):
        columns = (indices,) * len(dims)
    elif isinstance(indices, Columns) and len(indices.columns) == len(dims):
        columns = indices.columns
    else:
        return None
    axes = list(ins[0])
    for dim, held in zip(dims, columns, strict=True):
        if held is None:
            continue
        is_dropped = GatherScatterMode.from_any(eqn.params["mode"]) is GatherScatterMode.FILL_OR_DROP
        if dim not in single or size_of(axes[dim]) != size_of(held.axis):
            return None
        if (held.below or held.beyond) and not is_dropped:
            return None
        unify(axes[dim], held.axis, reason)
        axes[dim] = fresh(size_of(axes[dim]))
    return tuple(axes)


def dynamic_slice(
    frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason
) -> list[Any] | None:
    """A slice of one unit at a position, read or updated."""
    is_update = eqn.primitive.name == "dynamic_update_slice"
    operand, starts = facts[0], facts[2 if is_update else 1 :]
    sizes = shape_of(eqn.invars[1] if is_update else eqn.outvars[0])
    if isinstance(operand, Columns | Shifted) or (
        is_update and (operand is not None or facts[1] is not None)
    ):
        return None
    axes = list(ins[0])
    for dim, held in enumerate(starts[: len(axes)]):
        if held is None:
            continue
        if not isinstance(held, Held) or held.below or held.beyond or sizes[dim] != 1:
            return None
        if size_of(axes[dim]) != size_of(held.axis):
            return None
        unify(axes[dim], held.axis, reason)
        axes[dim] = fresh(size_of(axes[dim]))
    if any(fact is not None for fact in starts):
        frame.routed[id(eqn)] = Routed(
            (tuple(axes), *ins[1:]), {}, tuple(axis for held in starts for axis in axes_of(held))
        )
        ins[0] = tuple(axes)
    return [None if is_update else operand]
