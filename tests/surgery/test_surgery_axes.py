"""The algebra of axes, worked by hand."""

import numpy as np
import pytest
from jax import export

from jaxprune.surgery.inference.axes import (
    Atom,
    Reason,
    concatenated,
    cut,
    freeze,
    fresh,
    leaves_of,
    normal,
    parts_of,
    reach,
    reshaped,
    size_of,
    split,
    unify,
)
from jaxprune.surgery.inference.kept import Conflict, Keep, assign, collect
from jaxprune.surgery.inference.rules.selection import selected

WHY = Reason("test")


def frozen(axis):
    return [leaf.frozen is not None for leaf in leaves_of(axis)]


def test_reshape_splits_an_axis_into_a_product_that_merges_back():
    axis = fresh(12)
    heads, dim = reshaped((axis,), (3, 4), WHY)
    (merged,) = reshaped((heads, dim), (12,), WHY)
    assert normal(merged) == normal(axis) == heads + dim
    assert [atom.size for atom in normal(axis)] == [3, 4]


def test_a_transposed_merge_is_another_axis():
    axis = fresh(12)
    a, b = reshaped((axis,), (3, 4), WHY)
    (other,) = reshaped((b, a), (12,), WHY)
    assert normal(other) == b + a
    unify(axis, other, WHY)  # (3, 4) against (4, 3): no common factors
    assert all(frozen(axis))


def test_unify_refines_what_was_read_before():
    early, late = fresh(12), fresh(12)
    unify(early, late, WHY)
    a, _ = reshaped((late,), (2, 6), WHY)
    assert normal(early)[0] is a[0]


def test_unify_of_different_splits_takes_the_common_refinement():
    x, y = fresh(12), fresh(12)
    reshaped((x,), (2, 6), WHY)
    reshaped((y,), (4, 3), WHY)
    unify(x, y, WHY)
    assert [atom.size for atom in normal(x)] == [2, 2, 3]
    assert normal(x) == normal(y)


def test_cut_makes_a_sum_and_pieces_can_be_coupled():
    axis = fresh(8)
    left, right = cut(axis, 4, WHY)
    rotated = concatenated([right, left])
    unify(axis, rotated, WHY)
    assert len(set(leaves_of(axis))) == 1
    assert not any(frozen(axis))


def test_sums_with_other_borders_are_cut_at_both():
    x, y = concatenated([fresh(3), fresh(5)]), concatenated([fresh(4), fresh(4)])
    unify(x, y, WHY)
    assert [size_of(part) for part in parts_of(normal(x)[0])] == [3, 1, 4]


def test_a_cut_through_the_inner_factor_freezes():
    axis = fresh(12)
    reshaped((axis,), (3, 4), WHY)
    left, right = cut(axis, 6, WHY)
    assert all(frozen(axis)) and all(frozen(left)) and all(frozen(right))
    assert (size_of(left), size_of(right)) == (6, 6)


def test_a_sum_of_equal_segments_reshapes_with_its_segments_coupled():
    q, k = fresh(6), fresh(6)
    _, heads, dim = reshaped((concatenated([q, k]),), (2, 3, 2), WHY)
    assert normal(q) == normal(k) == heads + dim


def test_freezing_reaches_what_is_split_or_merged_later():
    axis = fresh(12)
    freeze(axis, WHY)
    a, b = reshaped((axis,), (3, 4), WHY)
    other = fresh(4)
    unify(b, other, WHY)
    assert frozen(a) == [True] and frozen(other) == [True]


def test_reach_survives_merging():
    x, y = fresh(6), concatenated([fresh(2), fresh(4)])
    reach(x, WHY)
    unify(x, y, WHY)
    assert all(leaf.reached is WHY for leaf in leaves_of(y))


def test_split_of_a_sum_needs_segments_that_divide():
    assert split(concatenated([fresh(4), fresh(8)]), 4, WHY) is not None
    assert split(concatenated([fresh(3), fresh(9)]), 4, WHY) is None


def test_masks_multiply_over_products_and_concatenate_over_sums():
    a, b = Atom(2), Atom(3)
    keep = Keep({a: np.array([True, False]), b: np.array([True, False, True])})
    product, both = (a, b), concatenated([(a,), (b,)])
    assert keep.mask(product).tolist() == [True, False, True, False, False, False]
    assert keep.mask(both).tolist() == [True, False, True, False, True]
    assert keep.size(product) == 2 and keep.size(both) == 3


def test_assign_reads_masks_back_and_refuses_what_the_axis_can_not_be():
    a, b = Atom(2), Atom(3)
    masks = {}
    assign((a, b), np.array([True, False, True, False, False, False]), masks)
    assert masks[a].tolist() == [True, False] and masks[b].tolist() == [True, False, True]
    with pytest.raises(Conflict, match="different units"):
        assign((a,), np.array([False, True]), masks)
    with pytest.raises(Conflict, match="frozen here: test"):
        assign((Atom(2, WHY),), np.array([True, False]), {})


def test_collect_adds_up_all_places_of_a_unit():
    a, b = Atom(2), Atom(3)
    assert collect((a, b), np.arange(6.0), a).tolist() == [3.0, 12.0]
    assert collect((a, b), np.arange(6.0), b).tolist() == [3.0, 5.0, 7.0]
    assert collect(concatenated([(a,), (b,), (a,)]), np.arange(7.0), a).tolist() == [5.0, 7.0]


def test_constant_positions_select_pieces_and_columns():
    axis = fresh(8)
    keep = np.array([True, False, False, True, True, True, False, True])
    swapped = selected(axis, [4, 5, 6, 7, 0, 1, 2, 3], WHY)
    masks = {}
    assign(axis, keep, masks)
    assert Keep(masks).mask(swapped).tolist() == keep[[4, 5, 6, 7, 0, 1, 2, 3]].tolist()
    axis = fresh(8)
    columns = selected(axis, [1, 3, 5, 7, 0, 2, 4, 6], WHY)
    pairs = np.repeat([True, False, True, True], 2)  # columns keep pairs of neighbours together
    masks = {}
    assign(axis, pairs, masks)
    assert Keep(masks).mask(columns).tolist() == pairs[[1, 3, 5, 7, 0, 2, 4, 6]].tolist()


def test_constant_positions_without_runs_freeze():
    for positions in ([3, 1, 4, 0], [7, 6, 5, 4, 3, 2, 1, 0], [0, 3, 6]):
        axis = fresh(8)
        assert all(frozen(selected(axis, positions, WHY))) and all(frozen(axis))


def test_symbolic_sizes_are_frozen_and_reshape_beside_units():
    batch, length = (fresh(size) for size in export.symbolic_shape("b, s"))
    units = fresh(12)
    (rows, same) = reshaped((batch, length, units), (size_of(batch) * size_of(length), 12), WHY)
    assert all(frozen(rows)) and not any(frozen(same))
    back = reshaped((rows, same), (size_of(batch), size_of(length), 3, 4), WHY)
    assert [normal(axis) for axis in back] == [batch, length, *((atom,) for atom in normal(units))]
    (flat,) = reshaped((batch, units), (size_of(batch) * 12,), WHY)
    assert [leaf.frozen is None for leaf in leaves_of(flat)] == [False, True, True]
