"""Primitives that rearrange arrays: reshape, transpose, broadcast, concatenate, split, slice, pad and similar ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import bind
from jaxprune.surgery.inference.axes import (
    Axes,
    Axis,
    Reason,
    concatenated,
    cut,
    freeze,
    fresh,
    is_frozen,
    reshaped,
    size_of,
    split,
    unify,
)
from jaxprune.surgery.inference.rules.rule import Kept, Rule, kept_shape, shape_of

Params = dict[str, Any]


def _reshape(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    return [reshaped(ins[0], shape_of(eqn), reason._replace(text="reshaped into factors that don't nest"))]


def _reshape_resize(eqn: JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept) -> Params:
    del eqn, ins
    return {"new_sizes": kept_shape(outs[0], kept)}


def _transpose(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del reason
    return [tuple(ins[0][dim] for dim in eqn.params["permutation"])]


def _squeeze(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del reason
    gone = {dim % len(ins[0]) for dim in eqn.params["dimensions"]}
    return [tuple(axis for dim, axis in enumerate(ins[0]) if dim not in gone)]


def _broadcast_in_dim(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del reason
    out = [fresh(size) for size in shape_of(eqn)]
    for axis, dim in zip(ins[0], eqn.params["broadcast_dimensions"], strict=True):
        if size_of(axis) == size_of(out[dim]):
            out[dim] = axis
    return [tuple(out)]


def _broadcast_resize(eqn: JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept) -> Params:
    del eqn, ins
    return {"shape": kept_shape(outs[0], kept)}


def _concatenate(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    along = eqn.params["dimension"]
    out = list(ins[0])
    for dim in range(len(out)):
        if dim != along:
            for axes in ins[1:]:
                unify(out[dim], axes[dim], reason)
    out[along] = concatenated([axes[along] for axes in ins])
    return [tuple(out)]


def _pieces(axis: Axis, sizes: Sequence[int], reason: Reason) -> list[Axis]:
    reason = reason._replace(text="cut through the middle of its units")
    if is_frozen(axis):
        return [fresh(size, reason) for size in sizes]
    pieces = []
    for size in sizes[:-1]:
        piece, axis = cut(axis, size, reason)
        pieces.append(piece)
    return [*pieces, axis]


def _split(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    axes, along = ins[0], eqn.params["axis"]
    pieces = _pieces(axes[along], [shape_of(eqn, i)[along] for i in range(len(eqn.outvars))], reason)
    return [(*axes[:along], piece, *axes[along + 1 :]) for piece in pieces]


def _split_resize(eqn: JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept) -> Params:
    del ins
    return {"sizes": tuple(kept.size(axes[eqn.params["axis"]]) for axes in outs)}


def _stack(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    along = eqn.params["axis"]
    out = list(ins[0])
    for axes in ins[1:]:
        for a, b in zip(out, axes, strict=True):
            unify(a, b, reason)
    return [(*out[:along], fresh(len(ins), reason._replace(text="stacked arrays")), *out[along:])]


def _unstack(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    axes, along = ins[0], eqn.params["axis"]
    freeze(axes[along], reason._replace(text="unstacked: its entries are used one by one"))
    return [(*axes[:along], *axes[along + 1 :]) for _ in eqn.outvars]


def _tile(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del reason
    return [
        tuple(
            axis if count == 1 else fresh(count) + axis
            for axis, count in zip(ins[0], eqn.params["reps"], strict=True)
        )
    ]


def _tile_resize(eqn: JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept) -> Params:
    del eqn
    return {"reps": tuple(kept.size(o) // kept.size(i) for i, o in zip(ins[0], outs[0], strict=True))}


def _slice(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    p = eqn.params
    strides = p["strides"] or (1,) * len(ins[0])
    bounds = zip(ins[0], p["start_indices"], p["limit_indices"], strides, shape_of(eqn), strict=True)
    return [tuple(sliced(*bound, reason) for bound in bounds)]


def sliced(axis: Axis, start: int, limit: int, stride: int, out: int, reason: Reason) -> Axis:
    size = size_of(axis)
    if out in (0, size):
        return axis if out else fresh(0)
    if is_frozen(axis) or not all(isinstance(n, int) for n in (size, start, limit)):
        why = reason._replace(text="sliced at a symbolic position, or a part of a frozen axis")
        freeze(axis, why)
        return fresh(out, why)
    if stride == 1:
        reason = reason._replace(text="cut through the middle of its units")
        if limit < size:
            axis, _ = cut(axis, limit, reason)
        return cut(axis, start, reason)[1] if start else axis
    # Every k-th unit: the axis is (size / k) groups of k, of which the slice takes one column.
    strided = reason._replace(text="strided slice")
    columns = split(axis, stride, strided) if size % stride == 0 and start < stride else None
    if columns is None or out != size // stride:
        freeze(axis, strided)
        return fresh(out, strided)
    freeze(columns[1], strided)
    return columns[0]


def _slice_resize(eqn: JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept) -> Params:
    del outs
    p = eqn.params
    starts, limits = [], []
    strides = p["strides"] or (1,) * len(ins[0])
    for axis, start, limit, stride in zip(
        ins[0], p["start_indices"], p["limit_indices"], strides, strict=True
    ):
        if kept.size(axis) == size_of(axis):
            starts.append(start)
            limits.append(limit)
        elif stride == 1:
            before = np.concatenate([[0], np.cumsum(kept.mask(axis))])
            starts.append(int(before[start]))
            limits.append(int(before[limit]))
        else:
            starts.append(start)
            limits.append(kept.size(axis))
    return {"start_indices": tuple(starts), "limit_indices": tuple(limits)}


def _pad(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    out: list[Axis] = []
    for axis, size, (low, high, inner) in zip(
        ins[0], shape_of(eqn), eqn.params["padding_config"], strict=True
    ):
        if low == high == inner == 0:
            out.append(axis)
            continue
        if inner or not isinstance(size, int):
            why = reason._replace(text="padded between its units" if inner else "padded to a symbolic size")
            freeze(axis, why)
            out.append(fresh(size, why))
            continue
        low, high = int(low), int(high)
        low_cut, high_cut = max(-low, 0), max(-high, 0)
        if low_cut + high_cut:
            axis = sliced(
                axis, low_cut, size_of(axis) - high_cut, 1, size_of(axis) - low_cut - high_cut, reason
            )
        parts = [fresh(low)] if low > 0 else []
        parts += [axis] + ([fresh(high)] if high > 0 else [])
        out.append(concatenated(parts))
    return [tuple(out)]


def _pad_evaluate(
    eqn: JaxprEqn, args: Sequence[Any], ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept
) -> list[Any]:
    config = []
    for axis, out, (low, high, inner) in zip(ins[0], outs[0], eqn.params["padding_config"], strict=True):
        if kept.size(out) != size_of(out) or kept.size(axis) != size_of(axis):
            n, m = size_of(axis), size_of(out)
            mask_in, mask_out = kept.mask(axis), kept.mask(out)
            low = -int(mask_in[:-low].sum()) if low < 0 else int(mask_out[:low].sum())
            high = -int(mask_in[n + high :].sum()) if high < 0 else int(mask_out[m - high :].sum())
        config.append((low, high, inner))
    return bind(eqn, args, padding_config=tuple(config))


def _rev(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    for dim in eqn.params["dimensions"]:
        freeze(ins[0][dim], reason._replace(text="reversed"))
    return [ins[0]]


RULES = {
    "reshape": Rule(_reshape, resize=_reshape_resize),
    "transpose": Rule(_transpose),
    "squeeze": Rule(_squeeze),
    "broadcast_in_dim": Rule(_broadcast_in_dim, resize=_broadcast_resize),
    "concatenate": Rule(_concatenate),
    "split": Rule(_split, resize=_split_resize),
    "stack": Rule(_stack),
    "unstack": Rule(_unstack),
    "tile": Rule(_tile, resize=_tile_resize),
    "slice": Rule(_slice, resize=_slice_resize),
    "pad": Rule(_pad, evaluate=_pad_evaluate),
    "rev": Rule(_rev),
}
