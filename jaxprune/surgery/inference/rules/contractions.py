"""dot_general, its ragged form, and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend.core import JaxprEqn

from jaxprune.surgery.inference.axes import Axes, Axis, Reason, freeze, fresh, reach, size_of, split, unify
from jaxprune.surgery.inference.rules.rule import Kept, Reduction, Rule, shape_of, zero


def _dot_general(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    left, right = ins
    for i, j in [*zip(contract_l, contract_r, strict=True), *zip(batch_l, batch_r, strict=True)]:
        unify(left[i], right[j], reason)
    for i in contract_l:
        reach(left[i], reason)
    free_l = [a for d, a in enumerate(left) if d not in contract_l and d not in batch_l]
    free_r = [a for d, a in enumerate(right) if d not in contract_r and d not in batch_r]
    return [(*(left[i] for i in batch_l), *free_l, *free_r)]


def _dot_general_reduces(eqn: JaxprEqn, ins: Sequence[Axes]) -> list[Reduction]:
    del ins
    (contract_l, contract_r), _ = eqn.params["dimension_numbers"]
    return [Reduction(0, contract_l, zero), Reduction(1, contract_r, zero)]


def _ragged_dot(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    """Rows, or a part of the summed axis, form groups with a matrix each; the rest is a product.

    A removed group is one without rows: the axis of the groups is that of their sizes. The rows are frozen.
    """
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contract_l, contract_r), (batch_l, batch_r) = numbers.dot_dimension_numbers
    (left, right), counts = ins[:2], ins[2:]
    of_groups = counts[0][len(counts[0]) - 1]
    ragged, grouped = numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions
    why = reason._replace(text="groups of a ragged product")
    counted = [*ragged]
    if len(counts[0]) > 1:  # counts for each entry of axes that are not summed, or are summed with the rows
        counted = [d for d in range(len(left)) if d not in contract_l or set(ragged) & set(contract_l)]
    fixed = [*(left[d] for d in counted), *counts[0][:-1], *(axis for axes in counts[1:] for axis in axes)]
    for axis in (*fixed, *(() if _counts_groups(eqn) else counts[0])):
        freeze(axis, why)
    for d in grouped:
        unify(right[d], of_groups, reason)
    for i, j in [*zip(contract_l, contract_r, strict=True), *zip(batch_l, batch_r, strict=True)]:
        unify(left[i], right[j], reason)
    for i in contract_l:
        reach(left[i], reason)
    free_l = [a for d, a in enumerate(left) if d not in (*contract_l, *batch_l)]
    free_r = [a for d, a in enumerate(right) if d not in (*contract_r, *batch_r, *grouped)]
    groups = [of_groups] if set(ragged) & set(contract_l) else []
    return [(*groups, *(left[i] for i in batch_l), *free_l, *free_r)]


def _counts_groups(eqn: JaxprEqn) -> bool:
    """Whether a group without rows can be left out: a matrix or a result of its own is left out with it."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    has_axis = numbers.rhs_group_dimensions or set(numbers.lhs_ragged_dimensions) & set(contracted)
    return bool(has_axis) and eqn.params.get("group_offset") is None


def _ragged_dot_reduces(eqn: JaxprEqn, ins: Sequence[Axes]) -> list[Reduction]:
    (contract_l, contract_r), _ = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    sums = [Reduction(0, contract_l, zero), Reduction(1, contract_r, zero)]
    return [*sums, Reduction(2, (len(ins[2]) - 1,), zero)] if _counts_groups(eqn) else sums


def _conv(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    p = eqn.params
    numbers, groups = p["dimension_numbers"], p["feature_group_count"]
    x, kernel, shape = ins[0], ins[1], shape_of(eqn)
    spatial = reason._replace(text="spatial axis of a convolution")
    out: list[Axis] = [()] * len(shape)
    for dim_x, dim_k, dim_out in zip(
        numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True
    ):
        freeze(x[dim_x], spatial)
        freeze(kernel[dim_k], spatial)
        out[dim_out] = fresh(shape[dim_out], spatial)
    batch, features = x[numbers.lhs_spec[0]], x[numbers.lhs_spec[1]]
    features_out, features_in = kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]]
    if p["batch_group_count"] != 1:
        why = reason._replace(text="convolution with batch groups")
        for axis in (batch, features, features_out, features_in):
            freeze(axis, why)
        out[numbers.out_spec[0]] = fresh(shape[numbers.out_spec[0]], why)
        out[numbers.out_spec[1]] = fresh(shape[numbers.out_spec[1]], why)
        return [tuple(out)]
    if groups == 1:
        unify(features, features_in, reason)
    else:
        # The features are (groups, in / groups), the kernel's outputs (groups, out / groups).
        why = reason._replace(text="convolution groups that don't nest in its features")
        outer = fresh(groups)
        unify(features, outer + features_in, why)
        grouped_out = split(features_out, size_of(features_out) // groups, why)
        if grouped_out is None:
            freeze(features_out, why)
            freeze(outer, why)
        else:
            unify(grouped_out[0], outer, why)
    reach(features, reason)
    out[numbers.out_spec[0]] = batch
    out[numbers.out_spec[1]] = features_out
    return [tuple(out)]


def _conv_resize(eqn: JaxprEqn, ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept) -> dict[str, Any]:
    del outs
    numbers = eqn.params["dimension_numbers"]
    features = kept.size(ins[0][numbers.lhs_spec[1]])
    groups = features // kept.size(ins[1][numbers.rhs_spec[1]])
    return {"feature_group_count": groups if eqn.params["feature_group_count"] > 1 else 1}


def _conv_reduces(eqn: JaxprEqn, ins: Sequence[Axes]) -> list[Reduction]:
    del ins
    numbers = eqn.params["dimension_numbers"]
    return [
        Reduction(0, (numbers.lhs_spec[1],), zero),
        Reduction(1, (numbers.rhs_spec[1],), zero),
    ]


RULES = {
    "dot_general": Rule(_dot_general, reduces=_dot_general_reduces),
    "ragged_dot_general": Rule(_ragged_dot, reduces=_ragged_dot_reduces),
    "conv_general_dilated": Rule(_conv, resize=_conv_resize, reduces=_conv_reduces),
}
