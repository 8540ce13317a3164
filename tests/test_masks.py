"""Scores to masks: exact counts, ties, priors, scopes, structures, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.usefixtures("engine")
def test_hand_worked_global_and_local():
    scores = {"a": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "b": jnp.array([[5.0, 6.0, 7.0, 8.0]])}
    everywhere = jp.make_masks(scores, 0.5)
    assert everywhere["a"].tolist() == [[False] * 4] and everywhere["b"].tolist() == [[True] * 4]
    each = jp.make_masks(scores, 0.5, scope="local")
    assert each["a"].tolist() == [[False, False, True, True]] == each["b"].tolist()


@pytest.mark.slow
def test_masks_have_the_trees_structure_and_plain_true_where_nothing_may_be_pruned():
    params = tree()
    masks = jp.make_masks(jp.scores.magnitude(params), 0.5)
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    assert masks["Dense_0"]["bias"] is True
    assert masks["Dense_0"]["kernel"].shape == (6, 8) and masks["Dense_0"]["kernel"].dtype == bool
    assert jp.sparsity(params, masks) == 0.5


@pytest.mark.usefixtures("engine")
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_vmap_over_scores_equals_single_calls():
    many = jax.vmap(lambda key: jax.random.normal(key, (5, 7)))(jax.random.split(jax.random.key(3), 4))
    masks = jax.vmap(lambda s: jp.make_masks({"w": s}, 0.4)["w"])(many)
    for scores, mask in zip(many, masks, strict=True):
        np.testing.assert_array_equal(mask, jp.make_masks({"w": scores}, 0.4)["w"])


@pytest.mark.usefixtures("engine")
def test_ties_go_by_leaf_then_index_and_the_count_is_exact():
    scores = {"a": jnp.ones((2, 3)), "c": jnp.ones((2, 2))}
    masks = jp.make_masks(scores, 0.5)
    assert masks["a"].tolist() == [[False, False, False], [False, False, True]] and masks["c"].all()


@pytest.mark.usefixtures("engine")
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


@pytest.mark.usefixtures("engine")
def test_prior_is_pruned_first_counts_and_never_comes_back():
    scores = {"w": jnp.array([[9.0, 8.0, 1.0, 2.0]])}
    prior = {"w": jnp.array([[False, True, True, True]])}
    assert jp.make_masks(scores, 0.5, prior=prior)["w"].tolist() == [[False, True, False, True]]
    assert jp.make_masks(scores, 0.25, prior=prior)["w"].tolist() == [[False, True, True, True]]
    assert jp.make_masks(scores, 0.0, prior=prior)["w"].tolist() == [[False, True, True, True]]
    unpruned = {"w": True}
    assert jp.make_masks(scores, 0.25, prior=unpruned)["w"].tolist() == [[True, True, False, True]]


@pytest.mark.usefixtures("engine")
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


@pytest.mark.usefixtures("engine")
def test_prior_of_whole_weights_under_a_coarser_structure_stays_pruned():
    scores = {"w": jnp.array([[1.0, 5.0, 6.0], [1.0, 5.0, 6.0]])}
    prior = {"w": jnp.array([[True, True, False], [True, False, True]])}
    mask = jp.make_masks(scores, 1 / 3, structure=jp.Channels(), prior=prior)["w"]
    assert mask.tolist() == [[False, True, False], [False, False, True]]


@pytest.mark.usefixtures("engine")
def test_allocation_tree_gives_each_leaf_its_own_share():
    scores = jp.scores.magnitude(tree(4))
    shares = {"Dense_0": {"kernel": 0.25, "bias": 0.0}, "Dense_1": {"kernel": 0.75, "bias": 0.0}}
    assert pruned_in(jp.make_masks(scores, shares)) == [0, 12, 0, 24]


@pytest.mark.slow
def test_where_decides_and_embeddings_can_opt_in():
    scores = {"embedding": jnp.ones((4, 2)), "kernel": jnp.full((2, 2), 2.0)}
    where = jp.prunable(scores, include=(..., "embedding"))
    assert pruned_in(jp.make_masks(scores, 0.5, where=where)) == [6, 0]


@pytest.mark.usefixtures("engine")
def test_signed_scores_are_ordered_as_numbers():
    assert jp.make_masks({"w": jnp.array([[-3.0, 0.0, -1.0, 2.0]])}, 0.5)["w"].tolist() == [
        [False, True, False, True]
    ]


def test_nan_goes_first_under_jit():
    mask = jax.jit(lambda s: jp.make_masks({"w": s}, 0.25)["w"])(jnp.array([[1.0, jnp.nan, 0.0, 2.0]]))
    assert mask.tolist() == [[True, False, True, True]]


@pytest.mark.usefixtures("engine")
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


# Applying and counting


def test_apply_masks_uses_where_keeps_dtypes_and_leaves_the_rest_alone():
    params = {"w": jnp.array([[jnp.nan, jnp.inf, 2.0]], jnp.bfloat16), "n": jnp.arange(3), "f": jax.nn.relu}
    out = jp.apply_masks(params, {"w": jnp.array([[False, False, True]]), "n": True, "f": True})
    assert out["w"].tolist() == [[0, 0, 2]] and out["w"].dtype == jnp.bfloat16
    assert out["n"] is params["n"] and out["f"] is jax.nn.relu


@pytest.mark.slow
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


@pytest.mark.usefixtures("engine")
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
    with pytest.raises(ValueError, match="1 NaN and 0 -inf of 2 at 'w'"):
        jp.make_masks({"w": jnp.array([[jnp.nan, 1.0]])}, 0.5)
    with pytest.raises(ValueError, match="0 NaN and 1 -inf"):
        jp.make_masks({"w": jnp.array([[-jnp.inf, 1.0]])}, 0.5)
    with pytest.raises(ValueError, match=r"`m` must divide the input axis, got 'w' of shape \(6, 4\)"):
        jp.make_masks({"w": jnp.ones((6, 4))}, 0.5, structure=jp.NM(2, 4))
    with pytest.raises(ValueError, match=r"must be 0\.5 for NM"):
        jp.make_masks({"w": jnp.ones((8, 4))}, 0.8, structure=jp.NM(2, 4))
    with pytest.raises(ValueError, match=r"must be 0\.5 for NM"):
        jp.make_masks({"w": jnp.ones((8, 4))}, jnp.float32(0.8), structure=jp.NM(2, 4))
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
    with pytest.raises(ValueError, match="it has an extra leaf 'v'"):
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "structure",
    [jp.Unstructured(), jp.Channels(), jp.Block((2, 2)), jp.NM(1, 2), jp.NM(2, 4, axis=-1)],
    ids=str,
)
def test_shuffled_masks_keep_the_counts_of_each_layer_and_the_structure(structure):
    scores = {"a": jnp.arange(64.0).reshape(8, 8), "c": jnp.arange(32.0).reshape(4, 8), "bias": jnp.ones(8)}
    masks = jp.make_masks(scores, 0.5, scope="local", structure=structure)
    shuffled = jax.jit(lambda k: jp.shuffle_masks(masks, structure, key=k))(jax.random.key(1))
    assert pruned_in(shuffled) == pruned_in(masks)
    assert not bool((shuffled["a"] == masks["a"]).all())
    if not isinstance(structure, jp.NM):
        return
    for name, axis in (("a", structure.axis or -2), ("c", structure.axis or -2)):
        groups = np.moveaxis(np.asarray(shuffled[name]), axis, -1).reshape(-1, structure.m)
        assert (groups.sum(1) == structure.n).all()


@pytest.mark.slow
def test_shuffled_places_are_uniform():
    masks = {"w": jnp.arange(8).reshape(2, 4) < 2}
    drawn = jax.vmap(lambda k: jp.shuffle_masks(masks, key=k)["w"])(jax.random.split(jax.random.key(0), 2000))
    np.testing.assert_allclose(drawn.mean(0), 0.25, atol=0.04)


@pytest.mark.usefixtures("engine")
def test_float64_scores_and_float8_parameters():
    with jax.enable_x64():
        masks = jp.make_masks({"w": jnp.arange(6.0).reshape(2, 3)}, 0.5)
        params = jp.apply_masks({"w": jnp.arange(6.0).reshape(2, 3)}, masks)
        assert params["w"].dtype == jnp.float64 and params["w"].tolist() == [[0, 0, 0], [3, 4, 5]]
        assert jax.jit(lambda s: jp.make_masks({"w": jnp.ones((2, 2))}, s)["w"])(0.25).sum() == 3
    tiny = {"w": jnp.arange(4.0).reshape(2, 2).astype(jnp.float8_e4m3fn)}
    assert jp.make_masks(jp.scores.magnitude(tiny), 0.5)["w"].tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, np.float64])
def test_numbers_too_small_for_xla_are_no_zeros(dtype):
    least = float(jnp.finfo(dtype).smallest_subnormal)
    tree = {"w": np.array([[0.0, -0.0, least, -least, np.nan]], dtype)}
    assert jp.count_zeros(tree).zeros == 2
    if dtype != np.float64:
        assert jp.count_zeros(jax.tree.map(jnp.asarray, tree)).zeros == 2
    with pytest.raises(TypeError, match="must hold known arrays, got a traced one at 'w'"):
        jax.jit(lambda tree: jp.count_zeros(tree).zeros)(tree)


def test_zeros_of_a_tree_without_masks_are_counted_exactly():
    tree = {"a": {"kernel": jnp.eye(3)}, "b": {"kernel": jnp.array([[-0.0, jnp.nan]]), "bias": jnp.zeros(2)}}
    found = jp.count_zeros(tree)
    assert (found.zeros, found.size, found.leaves) == (7, 11, {"a/kernel": (6, 9), "b/kernel": (1, 2)})
    everything = jp.count_zeros(tree, where=lambda tree: jax.tree.map(lambda _: True, tree))
    assert (everything.zeros, everything.size) == (9, 13)
