"""Scores to masks: exact counts, ties, priors, scopes, structures, bad input."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp


def tree(seed=0, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "Dense_0": {"kernel": jax.random.normal(keys[0], (6, 8), dtype), "bias": jnp.ones(8, dtype)},
        "Dense_1": {"kernel": jax.random.normal(keys[1], (8, 4), dtype), "bias": jnp.ones(4, dtype)},
    }


def pruned_in(masks):
    return [int((~np.asarray(m)).sum()) for m in jax.tree.leaves(masks)]


def reference(scores, sparsity, scope):
    """Stable sort in float64, leaf order then flat index."""
    leaves = [np.asarray(s, np.float64).ravel() for s in scores]
    groups = [leaves] if scope == "global" else [[leaf] for leaf in leaves]
    masks = []
    for group in groups:
        flat = np.concatenate(group)
        keep = np.ones(flat.size, bool)
        keep[np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]] = False
        masks += np.split(keep, np.cumsum([g.size for g in group])[:-1])
    return masks


def test_hand_worked_global_and_local():
    scores = {"a": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "b": jnp.array([[5.0, 6.0, 7.0, 8.0]])}
    everywhere = jp.make_masks(scores, 0.5)
    assert everywhere["a"].tolist() == [[False] * 4] and everywhere["b"].tolist() == [[True] * 4]
    each = jp.make_masks(scores, 0.5, scope="local")
    assert each["a"].tolist() == [[False, False, True, True]] == each["b"].tolist()


def test_masks_have_the_trees_structure_and_plain_true_where_nothing_may_be_pruned():
    params = tree()
    masks = jp.make_masks(jp.scores.magnitude(params), 0.5)
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    assert masks["Dense_0"]["bias"] is True
    assert masks["Dense_0"]["kernel"].shape == (6, 8) and masks["Dense_0"]["kernel"].dtype == bool
    assert jp.sparsity(params, masks) == 0.5


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("sparsity", [0, 0.0, 0.1, 0.33, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_same_as_a_stable_sort(scope, sparsity, dtype):
    scores = jp.scores.magnitude(tree(1, dtype))
    masks = jp.make_masks(scores, sparsity, scope=scope)
    got = [np.asarray(masks[name]["kernel"]).ravel() for name in ("Dense_0", "Dense_1")]
    want = reference([scores[name]["kernel"] for name in ("Dense_0", "Dense_1")], sparsity, scope)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g, w)


def test_traced_sparsity_under_jit_vmap_and_eagerly_gives_the_same_masks():
    scores = jp.scores.magnitude(tree(2))
    values = jnp.array([0.0, 0.25, 0.5, 0.9])
    batched = jax.vmap(lambda s: jax.tree.map(jnp.asarray, jp.make_masks(scores, s)))(values)
    jitted = jax.jit(lambda s: jp.make_masks(scores, s))
    for i, value in enumerate(values):
        eager = jp.make_masks(scores, float(value))
        for other in (
            jitted(value),
            jp.make_masks(scores, value),
            jax.tree.map(lambda x, i=i: x[i], batched),
        ):
            jax.tree.map(np.testing.assert_array_equal, eager, jax.tree.map(jnp.asarray, other))
    assert pruned_in(jax.jit(lambda s: jp.make_masks(scores, s))(1.0)) == [0, 48, 0, 32], (
        "traced 1.0 prunes all"
    )


def test_vmap_over_scores_equals_single_calls():
    many = jax.vmap(lambda key: jax.random.normal(key, (5, 7)))(jax.random.split(jax.random.key(3), 4))
    masks = jax.vmap(lambda s: jp.make_masks({"w": s}, 0.4)["w"])(many)
    for scores, mask in zip(many, masks, strict=True):
        np.testing.assert_array_equal(mask, jp.make_masks({"w": scores}, 0.4)["w"])


def test_ties_go_by_leaf_then_index_and_the_count_is_exact():
    scores = {"a": jnp.ones((2, 3)), "c": jnp.ones((2, 2))}
    masks = jp.make_masks(scores, 0.5)
    assert masks["a"].tolist() == [[False, False, False], [False, False, True]] and masks["c"].all()


@pytest.mark.parametrize(
    "structure", [jp.Unstructured(), jp.Channels(), jp.Block((2, 2)), jp.Layers(), jp.NM(2, 4)]
)
def test_all_equal_scores(structure):
    scores = {"a": jnp.zeros((4, 4)), "c": jnp.zeros((8, 4))}
    masks = jp.make_masks(scores, 0.5, structure=structure)
    units = jax.tree.leaves(masks)
    share = [
        np.broadcast_to(np.asarray(m), s.shape)
        for m, s in zip(units, (scores["a"], scores["c"]), strict=True)
    ]
    if isinstance(structure, jp.Layers):
        assert [s.mean() for s in share] == [0, 1]
    else:  # of four channels in each leaf, those of the first one go
        assert sum((~s).sum() for s in share) == (16 if isinstance(structure, jp.Channels) else 24)


def test_prior_is_pruned_first_counts_and_never_comes_back():
    scores = {"w": jnp.array([[9.0, 8.0, 1.0, 2.0]])}
    prior = {"w": jnp.array([[False, True, True, True]])}
    assert jp.make_masks(scores, 0.5, prior=prior)["w"].tolist() == [[False, True, False, True]]
    assert jp.make_masks(scores, 0.25, prior=prior)["w"].tolist() == [[False, True, True, True]]
    assert jp.make_masks(scores, 0.0, prior=prior)["w"].tolist() == [[False, True, True, True]]
    unpruned = {"w": True}
    assert jp.make_masks(scores, 0.25, prior=unpruned)["w"].tolist() == [[True, True, False, True]]


def test_ladder_of_rounds_is_exact_and_nested():
    scores = {"a": jnp.zeros((20, 20)), "c": jnp.ones((30, 20))}  # a collapses first, with ties inside
    masks, n = None, 1000
    for r in range(1, 13):
        new = jp.make_masks(scores, 1 - 0.8**r, prior=masks)
        assert sum(pruned_in(new)) == round((1 - 0.8**r) * n)
        if masks is not None:
            assert all(
                bool(jnp.all(old | ~now))
                for old, now in zip(
                    map(jnp.asarray, jax.tree.leaves(masks)),
                    map(jnp.asarray, jax.tree.leaves(new)),
                    strict=True,
                )
            )
        masks = new


def test_prior_of_whole_weights_under_a_coarser_structure_stays_pruned():
    scores = {"w": jnp.array([[1.0, 5.0, 6.0], [1.0, 5.0, 6.0]])}
    prior = {"w": jnp.array([[True, True, False], [True, False, True]])}
    mask = jp.make_masks(scores, 1 / 3, structure=jp.Channels(), prior=prior)["w"]
    assert mask.tolist() == [[False, True, False], [False, False, True]]


def test_allocation_tree_gives_each_leaf_its_own_share():
    scores = jp.scores.magnitude(tree(4))
    shares = {"Dense_0": {"kernel": 0.25, "bias": 0.0}, "Dense_1": {"kernel": 0.75, "bias": 0.0}}
    assert pruned_in(jp.make_masks(scores, shares)) == [0, 12, 0, 24]


def test_where_decides_and_embeddings_can_opt_in():
    scores = {"embedding": jnp.ones((4, 2)), "kernel": jnp.full((2, 2), 2.0)}
    where = jp.prunable(scores, include=(..., "embedding"))
    assert pruned_in(jp.make_masks(scores, 0.5, where=where)) == [6, 0]


def test_signed_scores_are_ordered_as_numbers():
    assert jp.make_masks({"w": jnp.array([[-3.0, 0.0, -1.0, 2.0]])}, 0.5)["w"].tolist() == [
        [False, True, False, True]
    ]


def test_nan_goes_first_under_jit():
    mask = jax.jit(lambda s: jp.make_masks({"w": s}, 0.25)["w"])(jnp.array([[1.0, jnp.nan, 0.0, 2.0]]))
    assert mask.tolist() == [[True, False, True, True]]


def test_one_weight_and_empty_leaves():
    scores = {"one": jnp.ones((1, 1)), "none": jnp.zeros((0, 4)), "w": jnp.ones((3, 3))}
    for scope in ("global", "local"):
        masks = jp.make_masks(scores, 0.5, scope=scope)
        assert masks["none"].shape == (0, 4)
        assert jp.sparsity(scores, masks) == (0.5 if scope == "global" else 0.4)
    for structure in (jp.Channels(), jp.Block((2, 2)), jp.Layers()):
        jp.make_masks(scores, 0.5, structure=structure)
        jax.jit(lambda s, structure=structure: jp.make_masks(s, 0.5, structure=structure))(scores)
    assert jp.sparsity({"none": jnp.zeros((0, 4))}, {"none": jnp.zeros((0, 4), bool)}) == 0.0


# Structures


def test_nm_runs_along_the_input_axis_of_dense_and_convolution_kernels():
    for shape, axis in (((8, 3), 0), ((3, 3, 8, 5), 2), ((3, 8, 5), 1)):
        scores = jax.random.uniform(jax.random.key(5), shape)
        mask = np.moveaxis(
            np.asarray(jp.make_masks({"kernel": scores}, 0.5, structure=jp.NM(2, 4))["kernel"]), axis, -1
        )
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
        groups = np.moveaxis(np.asarray(scores), axis, -1).reshape(-1, 4)
        best = np.argsort(groups, axis=1)[:, 2:]
        assert np.take_along_axis(mask.reshape(-1, 4), best, 1).all(), (
            "the two largest of each group are kept"
        )


def test_nm_of_flax_attention_groups_the_model_axis_of_projections_and_head_dim_of_the_output():
    nm = jp.NM(2, 4)
    assert nm.group_axis("attention/query/kernel", (16, 3, 5)) == 0
    assert nm.group_axis("layers/attention/value/kernel", (12, 16, 3, 5)) == 1, "scanned layers"
    assert nm.group_axis("attention/out/kernel", (3, 8, 16)) == 1
    assert jp.NM(2, 4, axis=-1).group_axis("torch/weight", (3, 8)) == 1
    assert jp.NM(2, 4, axis=lambda path, shape: 0 if "first" in path else 1).group_axis("first", (4, 4)) == 0


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 8), (1, 2), (7, 8)])
def test_nm_keeps_n_of_every_m_with_ties_and_a_prior(n, m):
    scores = jnp.round(jax.random.uniform(jax.random.key(6), (2 * m, 6)) * 3)
    prior = {"w": jax.random.uniform(jax.random.key(7), (2 * m, 6)) > 0.3}
    structure = jp.NM(n, m)
    mask = jp.make_masks({"w": scores}, structure.sparsity, structure=structure)["w"]
    assert (np.asarray(mask).T.reshape(-1, m).sum(1) == n).all()
    after = jp.make_masks({"w": scores}, structure.sparsity, structure=structure, prior=prior)["w"]
    assert not bool((after & ~prior["w"]).any())
    assert (np.asarray(after).T.reshape(-1, m).sum(1) <= n).all()


@pytest.mark.parametrize("scope", ["global", "local"])
def test_nm_below_its_sparsity_prunes_the_lowest_of_its_own_candidates(scope):
    scores = {"w": jax.random.uniform(jax.random.key(8), (8, 6))}
    full = jp.make_masks(scores, 0.5, structure=jp.NM(2, 4))["w"]
    part = jax.jit(lambda s: jp.make_masks(scores, s, structure=jp.NM(2, 4), scope=scope))(0.25)["w"]
    assert int((~part).sum()) == 12 and bool((part | ~full).all())
    dropped, candidates = np.sort(np.asarray(scores["w"])[~part]), np.sort(np.asarray(scores["w"])[~full])
    np.testing.assert_array_equal(dropped, candidates[:12])
    most = jax.jit(lambda s: jp.make_masks(scores, s, structure=jp.NM(2, 4), scope=scope))(0.9)["w"]
    np.testing.assert_array_equal(most, full)


def test_channels_mask_is_broadcastable_and_along_any_axis():
    scores = {"w": jnp.arange(1.0, 25).reshape(2, 3, 4)}
    for axis, shape in ((-1, (1, 1, 4)), (0, (2, 1, 1)), (1, (1, 3, 1))):
        mask = jp.make_masks(scores, 0.5, structure=jp.Channels(axis))["w"]
        assert mask.shape == shape
        assert int((~mask).sum()) == round(0.5 * max(shape))
    one_d = {"b": jnp.arange(4.0)}
    where = jp.prunable(one_d, include="b")
    assert jp.make_masks(one_d, 0.5, structure=jp.Channels(), where=where)["b"].tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_channels_against_a_brute_force_over_subsets():
    w = jax.random.normal(jax.random.key(9), (5, 6))
    mask = np.asarray(
        jp.make_masks(jp.scores.l1_norm({"w": w}, jp.Channels()), 0.5, structure=jp.Channels())["w"]
    )[0]
    best = min(itertools.combinations(range(6), 3), key=lambda drop: np.abs(np.asarray(w))[:, drop].sum())
    assert tuple(np.flatnonzero(~mask)) == best


def test_blocks_with_edges_that_do_not_divide():
    scores = np.ones((5, 7), np.float32)
    scores[4:, 6:] = 0.1  # a 1 x 1 corner block
    scores[0:2, 0:3] = 0.5
    masks = jp.make_masks({"w": jnp.asarray(scores)}, 2 / 9, structure=jp.Block((2, 3)))["w"]
    want = np.ones((5, 7), bool)
    want[4:, 6:] = False
    want[0:2, 0:3] = False
    np.testing.assert_array_equal(masks, want)


def test_blocks_leave_leading_axes_ungrouped():
    mask = jp.make_masks(
        {"w": jax.random.uniform(jax.random.key(1), (3, 4, 4))}, 0.5, structure=jp.Block((2, 2))
    )["w"]
    per_block = np.asarray(mask).reshape(3, 2, 2, 2, 2).mean((2, 4))
    assert set(per_block.ravel()) == {0.0, 1.0} and per_block.sum() == 6


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    block=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sparsity=st.floats(0, 0.99),
    seed=st.integers(0, 9),
)
def test_blocks_equal_a_loop_over_blocks(shape, block, sparsity, seed):
    w = np.asarray(np.random.default_rng(seed).integers(0, 5, shape), np.float32)
    starts = list(itertools.product(range(0, shape[0], block[0]), range(0, shape[1], block[1])))
    means = np.array(
        [w[i : i + block[0], j : j + block[1]].astype(np.float64).mean() for i, j in starts], np.float32
    )
    want = np.ones(shape, bool)
    for b in np.argsort(means, kind="stable")[: round(sparsity * len(starts))]:
        i, j = starts[b]
        want[i : i + block[0], j : j + block[1]] = False
    got = np.asarray(jp.make_masks({"w": jnp.asarray(w)}, sparsity, structure=jp.Block(block))["w"])
    if len(set(means)) == len(means) or sparsity == 0:  # rounding of a mean may reorder equal ones
        np.testing.assert_array_equal(got, want)
    assert got.shape == shape


def test_layers_mask_shape_and_choice():
    scores = {"a": jnp.full((2, 2), 3.0), "c": jnp.full((4, 4), 1.0), "d": jnp.full((2, 8), 2.0)}
    masks = jp.make_masks(scores, 1 / 3, structure=jp.Layers())
    assert [m.shape for m in jax.tree.leaves(masks)] == [(1, 1)] * 3
    assert [bool(m.all()) for m in jax.tree.leaves(masks)] == [True, False, True]
    assert jp.sparsity(scores, masks) == 16 / 36


def test_constant_unit_scores_pass_through_the_mean_unchanged():
    values = np.float32(0.1) * (1 + np.arange(64) * np.float32(2**-23))  # neighbours in float32
    scores = {"w": jnp.broadcast_to(jnp.asarray(values)[None], (999, 64))}
    mask = np.asarray(jp.make_masks(scores, 0.5, structure=jp.Channels())["w"])[0]
    np.testing.assert_array_equal(mask, np.arange(64) >= 32)


# Applying and counting


def test_apply_masks_uses_where_keeps_dtypes_and_leaves_the_rest_alone():
    params = {"w": jnp.array([[jnp.nan, jnp.inf, 2.0]], jnp.bfloat16), "n": jnp.arange(3), "f": jax.nn.relu}
    out = jp.apply_masks(params, {"w": jnp.array([[False, False, True]]), "n": True, "f": True})
    assert out["w"].tolist() == [[0, 0, 2]] and out["w"].dtype == jnp.bfloat16
    assert out["n"] is params["n"] and out["f"] is jax.nn.relu


def test_sparsity_counts_prunable_weights_only_and_works_under_jit():
    params = tree()
    masks = jp.make_masks(jp.scores.magnitude(params), 0.5, structure=jp.Channels())
    assert jp.sparsity(params, masks) == pytest.approx(
        float(jax.jit(jp.sparsity)(params, jax.tree.map(jnp.asarray, masks)))
    )
    everything_kept = jax.tree.map(lambda _: True, params)
    assert jp.sparsity(params, everything_kept) == 0.0


def test_trees_match_by_path_across_frameworks():
    masks = jp.make_masks({"params": tree()}, 0.5)
    out = jp.apply_masks(tree(), masks)
    assert jax.tree.structure(out) == jax.tree.structure(tree())


# Bad input


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (90, r"`sparsity` must be in \[0, 1\), got 90.*It is a fraction: pass 0.9"),
        (1.0, r"must be in \[0, 1\)"),
        (-0.1, r"must be in \[0, 1\)"),
        (float("nan"), r"must be in \[0, 1\)"),
        (jnp.float32(1.5), r"pass 0.015"),
        (jnp.ones(3), "tree structure"),
        ({"Dense_0": {"kernel": 0.5}}, "tree structure of the parameters, but it lacks 'Dense_0/bias'"),
        (jax.tree.map(lambda _: 2.0, tree()), "at 'Dense_0/kernel'"),
    ],
)
def test_bad_sparsity(sparsity, message):
    with pytest.raises(ValueError, match=message):
        jp.make_masks(tree(), sparsity)


def test_bad_input_is_named():
    scores = jp.scores.magnitude(tree())
    with pytest.raises(TypeError, match="must be a number"):
        jp.make_masks(scores, "0.5")
    with pytest.raises(TypeError, match="must be a number"):
        jp.make_masks(scores, True)
    with pytest.raises(ValueError, match="`scope` must be 'global' or 'local'"):
        jp.make_masks(scores, 0.5, scope="layer")
    with pytest.raises(TypeError, match="`structure` must be a structure"):
        jp.make_masks(scores, 0.5, structure=jp.Unstructured)
    with pytest.raises(TypeError, match="`where` is True at 'w', which is int32"):
        jp.make_masks({"w": jnp.ones((2, 2), int)}, 0.5, where={"w": True})
    with pytest.raises(TypeError, match="`where` must hold Python bools"):
        jp.make_masks({"w": jnp.ones((2, 2))}, 0.5, where={"w": 1})
    with pytest.raises(ValueError, match="nothing to prune"):
        jp.make_masks({"bias": jnp.ones(3)}, 0.5)
    with pytest.raises(ValueError, match="no leaves"):
        jp.make_masks({}, 0.5)
    with pytest.raises(ValueError, match="1 NaN and 0 infinite of 2 at 'w'"):
        jp.make_masks({"w": jnp.array([[jnp.nan, 1.0]])}, 0.5)
    with pytest.raises(ValueError, match="0 NaN and 1 infinite"):
        jp.make_masks({"w": jnp.array([[jnp.inf, 1.0]])}, 0.5)
    with pytest.raises(ValueError, match=r"`m` must divide the input axis, got 'w' of shape \(6, 4\)"):
        jp.make_masks({"w": jnp.ones((6, 4))}, 0.5, structure=jp.NM(2, 4))
    with pytest.raises(ValueError, match=r"must be 0\.5 for NM"):
        jp.make_masks({"w": jnp.ones((8, 4))}, 0.8, structure=jp.NM(2, 4))
    with pytest.raises(ValueError, match="0 < n < m"):
        jp.NM(4, 4)
    with pytest.raises(ValueError, match="out of range"):
        jp.make_masks({"w": jnp.ones((8, 4))}, 0.5, structure=jp.NM(2, 4, axis=2))
    with pytest.raises(ValueError, match="extents of at least 1"):
        jp.Block((0, 2))
    with pytest.raises(ValueError, match=r"needs 3 axes, got 'w'"):
        jp.make_masks({"w": jnp.ones((8, 4))}, 0.5, structure=jp.Block((2, 2, 2)))
    with pytest.raises(ValueError, match="`axis` 2 is out of range for 'w'"):
        jp.make_masks({"w": jnp.ones((8, 4))}, 0.5, structure=jp.Channels(2))
    with pytest.raises(ValueError, match="must be 'global' for Layers"):
        jp.make_masks({"w": jnp.ones((8, 4))}, 0.5, structure=jp.Layers(), scope="local")


def test_bad_masks_are_named():
    params = {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"must broadcast to the parameters, got shape \(3, 2\) at 'w'"):
        jp.apply_masks(params, {"w": jnp.ones((3, 2), bool)})
    with pytest.raises(TypeError, match=r"must hold bool arrays .* got float32 at 'w'"):
        jp.apply_masks(params, {"w": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="it has 'v' besides"):
        jp.apply_masks(params, {"w": True, "v": True})
    with pytest.raises(ValueError, match="`prior` must have the tree structure"):
        jp.make_masks(params, 0.5, prior={"v": True})
    with pytest.raises(ValueError, match="`where` must have the tree structure"):
        jp.make_masks(params, 0.5, where={"v": True})


def test_summary_reads_like_a_table():
    params = tree()
    table = jp.summary(params, jp.make_masks(jp.scores.magnitude(params), 0.5))
    assert (table.kept, table.prunable, table.total) == (40, 80, 92)
    assert "Dense_0/kernel   6x8" in str(table) and "50.00%" in str(table)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda p: jp.summary(p, jax.tree.map(lambda _: True, p)).kept)(params)


def test_shuffled_masks_keep_the_counts_of_each_layer():
    masks = jp.make_masks(jp.scores.magnitude(tree()), 0.7)
    shuffled = jp.shuffle_masks(jax.random.key(1), masks)
    assert pruned_in(shuffled) == pruned_in(masks)
    assert not bool((shuffled["Dense_0"]["kernel"] == masks["Dense_0"]["kernel"]).all())
