"""What the calibration data say nothing about, numbers at the edges of float32, and parts of a weight."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp

METHODS = [
    jp.MaskOnly("magnitude"),
    jp.MaskOnly("wanda"),
    jp.MaskOnly("wanda", per_output=False),
    jp.MaskOnly("ria"),
    jp.SparseGPT(),
    jp.ADMM(),
]
UNSEEN = [3, 7, 8, 9, 10, 11]  # inputs of the models below that are always 0


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dense(params, x):
    return x @ params["w"]


def partly_unseen(seed, rows=40, inputs=16):
    return draw(seed, rows, inputs).at[:, jnp.array(UNSEEN)].set(0)


def assert_kept(params, new, masks, unseen, share):
    """Exactly the asked share is pruned and zero, and what is kept of `unseen` has every bit of its value."""
    for name, rows in unseen.items():
        w, now, mask = (np.asarray(tree[name]) for tree in (params, new, masks))
        assert np.sum(~mask) == round(share * w.size)
        np.testing.assert_array_equal(now == 0, ~mask)
        here = np.broadcast_to(rows, w.shape) & mask
        np.testing.assert_array_equal(now[here], w[here])


# Inputs that are always 0


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_weights_of_unseen_inputs_are_pruned_as_asked_and_otherwise_kept(method):
    params, x = {"w": draw(0, 16, 6)}, partly_unseen(1)
    unseen = {"w": np.isin(np.arange(16), UNSEEN)[:, None]}
    for structure, share in ((jp.Unstructured(), 0.25), (jp.NM(2, 4), 0.5)):
        with pytest.warns(UserWarning, match=r"say nothing about .*'w' \(36 of 96\)"):
            new, masks = jp.reconstruct(dense, params, [x], share, structure, method)
        assert_kept(params, new, masks, unseen, share)


@pytest.mark.parametrize(
    "more",
    [
        {"refine": (jp.LeastSquares(4),)},
        {"refine": (jp.Swaps(4),)},
        {"refine": (jp.Swaps(4, dense_values=True), jp.LeastSquares(3))},
        {"fisher": {"w": jnp.abs(draw(5, 16, 6))}},
        {"dense_targets": 0.5},
    ],
    ids=["least squares", "swaps", "swaps with dense values", "fisher", "dense targets"],
)
def test_no_refinement_weighting_or_target_changes_what_is_not_known(more):
    params, x = {"w": draw(0, 16, 6)}, partly_unseen(1)
    unseen = {"w": np.isin(np.arange(16), UNSEEN)[:, None]}
    with pytest.warns(UserWarning, match="'w'"):
        new, masks = jp.reconstruct(dense, params, [x], 0.25, **more)
    assert_kept(params, new, masks, unseen, 0.25)


def test_a_block_counts_what_is_known_of_it():
    """Rows 4 to 7 are unseen but for one input of large weights; rows 8 to 11 are unseen and pruned first."""
    w = jnp.ones((16, 4)).at[4:8].set(5.0)
    x = draw(1, 40, 16).at[:, jnp.array([4, 5, 6, 8, 9, 10, 11])].set(0)
    for method in (jp.MaskOnly(), jp.SparseGPT(), jp.ADMM()):
        with pytest.warns(UserWarning, match="'w'"):
            new, masks = jp.reconstruct(dense, {"w": w}, [x], 0.25, jp.Block((4, 4)), method)
        np.testing.assert_array_equal(np.asarray(masks["w"])[:, 0], np.arange(16) // 4 != 2)
        np.testing.assert_array_equal(new["w"][4:7], 5.0)


def dispatch(x):
    return jax.nn.one_hot(jnp.where(x[:, 0] > 0, 0, 1), 3)


def by_vmap(params, x):
    hidden = jax.vmap(lambda rows, w: rows @ w)(jnp.einsum("te,td->etd", dispatch(x), x), params["up"])
    return jax.vmap(lambda rows, w: rows @ w)(jax.nn.relu(hidden), params["down"]).sum(0)


def by_scan(params, x):
    def expert(total, parts):
        up, down, mine = parts
        return total + jax.nn.relu((x * mine[:, None]) @ up) @ down, None

    return lax.scan(expert, jnp.zeros_like(x), (params["up"], params["down"], dispatch(x).T))[0]


def by_ragged_dot(params, x):
    order = jnp.argsort(x[:, 0] <= 0)
    sizes = dispatch(x).sum(0).astype(jnp.int32)
    hidden = jax.nn.relu(lax.ragged_dot(x[order], params["up"], sizes))
    return lax.ragged_dot(hidden, params["down"], sizes)


@pytest.mark.parametrize(
    ("fn", "method"),
    [
        (by_vmap, jp.MaskOnly()),
        (by_vmap, jp.SparseGPT()),
        (by_vmap, jp.ADMM()),
        (by_scan, jp.MaskOnly()),
        (by_ragged_dot, jp.ADMM()),
    ],
)
def test_an_expert_that_no_row_reaches_keeps_its_largest_weights(fn, method):
    params = {"up": draw(2, 3, 8, 16), "down": draw(3, 3, 16, 8)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        new, masks = jp.reconstruct(fn, params, [draw(4, 64, 8)], 0.25, method=method)
    (said,) = [str(w.message) for w in caught if "say nothing" in str(w.message)]
    assert "'up' (128 of 384)" in said and "'down' (128 of 384)" in said
    assert_kept(params, new, masks, {name: np.arange(3)[:, None, None] == 2 for name in params}, 0.25)
    for name, w in params.items():
        size, kept = np.abs(w[2]), np.asarray(masks[name])[2]
        if isinstance(method, jp.MaskOnly):  # each output by itself
            assert all(
                size[:, o][kept[:, o]].min() > size[:, o][~kept[:, o]].max() for o in range(w.shape[2])
            )
        elif isinstance(method, jp.ADMM):
            assert size[kept].min() > size[~kept].max()


def test_experts_by_ragged_dot_are_pruned_as_their_rows_alone():
    params, x = {"up": draw(2, 3, 8, 16), "down": draw(3, 3, 16, 8)}, draw(4, 48, 8)
    x = x.at[:, 0].set(jnp.where(jnp.arange(48) < 30, 1, -1) * jnp.abs(x[:, 0]))
    with pytest.warns(UserWarning, match="'up'"):
        new, _ = jp.reconstruct(by_ragged_dot, params, [x], 0.5)
    for expert, rows in enumerate((x[:30], x[30:])):
        alone, _ = jp.reconstruct(dense, {"w": params["up"][expert]}, [rows], 0.5)
        np.testing.assert_allclose(new["up"][expert], alone["w"], rtol=1e-4, atol=1e-5)


def test_masks_alone_leave_every_bit_of_the_kept_weights():
    params, x = {"w": draw(0, 16, 6) * 0.1}, draw(1, 40, 16)
    new, masks = jp.reconstruct(
        dense, params, [x], 0.5, method=jp.MaskOnly(), fisher={"w": draw(5, 16, 6) ** 2}
    )
    np.testing.assert_array_equal(new["w"], jnp.where(masks["w"], params["w"], 0))


def test_swap_refine_keeps_unseen_weights_and_all_that_has_no_mask():
    params = {"w": draw(0, 16, 6), "bias": jnp.zeros(6)}
    fn = lambda p, x: x @ p["w"] + p["bias"]  # noqa: E731
    masks = jp.make_masks({"w": jnp.abs(params["w"]), "bias": params["bias"]}, 0.5)
    pruned = jp.apply_masks(params, masks) | {"bias": jnp.arange(6.0)}
    with pytest.warns(UserWarning, match="'w'"):
        new, better = jp.swap_refine(fn, params, pruned, masks, [partly_unseen(1)])
    np.testing.assert_array_equal(new["bias"], jnp.arange(6.0))
    rows = {"w": np.isin(np.arange(16), UNSEEN)[:, None]}
    assert_kept(params, {"w": new["w"]}, {"w": better["w"]}, rows, 0.5)
    assert better["bias"] is True


def test_swap_refine_leaves_masked_weights_that_multiply_nothing_as_they_are():
    params = {"w": draw(0, 8, 6), "table": draw(1, 4, 8)}
    fn = lambda p, x: (x + p["table"][0]) @ p["w"]  # noqa: E731
    masks = jp.make_masks(jax.tree.map(jnp.abs, params), 0.5, where={"w": True, "table": True})
    pruned = jp.apply_masks(params, masks)
    new, better = jp.swap_refine(fn, params, pruned, masks, [draw(2, 30, 8)])
    np.testing.assert_array_equal(new["table"], pruned["table"])
    np.testing.assert_array_equal(better["table"], masks["table"])
    with pytest.raises(ValueError, match=r"`masks` must be NM\(2, 4\) along the inputs, got .* at 'w'"):
        jp.swap_refine(fn, params, pruned, masks, [draw(2, 30, 8)], jp.NM(2, 4))


def test_compensate_keeps_what_it_does_not_know_and_names_it():
    params = {"up": draw(0, 6, 8).at[:, 2].set(0), "down": draw(1, 8, 3)}
    fn = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    x = draw(2, 40, 6)
    groups = jp.find_groups(fn, params, x)
    plan = jp.surgery.plan_units(groups, {"down[0]": np.arange(8) != 5})
    with pytest.warns(UserWarning, match=r"'down' \(3 of 24\)"):
        new = jp.compensate(fn, params, plan, [x])
    np.testing.assert_array_equal(new["down"][2], params["down"][2])
    assert not np.array_equal(new["down"][0], params["down"][0])


def test_calibrate_names_matrices_without_any_input_and_nothing_less():
    params = {"up": draw(2, 3, 8, 16), "down": draw(3, 3, 16, 8)}
    with pytest.warns(UserWarning, match=r"'up' \(128 of 384\), 'down' \(128 of 384\)"):
        stats = jp.calibrate(by_vmap, params, [draw(4, 64, 8)])
    masks = jp.make_masks(jp.scores.wanda(params, stats), 0.25, scope="local")
    for o in range(16):  # the smallest weights of the expert, not its first ones
        size, kept = np.abs(params["up"][2, :, o]), np.asarray(masks["up"])[2, :, o]
        assert size[kept].min() > size[~kept].max()
    jp.calibrate(dense, {"w": draw(0, 16, 6)}, [partly_unseen(1)])


# Numbers whose squares leave float32


@pytest.mark.parametrize("size", [1e-20, 1e25])
@pytest.mark.parametrize("method", [jp.MaskOnly(), jp.SparseGPT(), jp.ADMM()], ids=lambda m: type(m).__name__)
def test_the_unit_of_inputs_and_weights_changes_nothing(method, size):
    w, x = draw(0, 16, 6), draw(1, 40, 16)
    options = {"method": method, "refine": (jp.Swaps(3), jp.LeastSquares(3)), "dense_targets": 0.5}
    wanted, masks = jp.reconstruct(dense, {"w": w}, [x], 0.5, **options)
    for inputs, weights in ((size, 1), (1, size), (size, 1 / size)):
        results = []
        new, found = jp.reconstruct(
            dense, {"w": w * weights}, [x * inputs], 0.5, on_layer=results.append, **options
        )
        np.testing.assert_array_equal(found["w"], masks["w"])
        np.testing.assert_allclose(
            np.asarray(new["w"]) / np.float32(weights), wanted["w"], rtol=1e-3, atol=1e-4
        )
        assert 0 < results[0].error < 1


def test_statistics_hold_small_and_large_inputs_beside_each_other():
    x = np.array([[1.0, 2e-25, 0, 3e20], [1.0, -1e-25, 0, 1e20]], np.float32)
    for kind in ("diagonal", "full"):
        (stats,) = jp.calibrate(dense, {"w": jnp.ones((4, 1))}, [x[:1], x[1:]], moments=kind).values()
        np.testing.assert_allclose(
            stats.input_norms[:, 0], [2**0.5, 5**0.5 * 1e-25, 0, 10**0.5 * 1e20], rtol=1e-6
        )
        np.testing.assert_allclose(stats.input_means[:, 0], [1, 0.5e-25, 0, 2e20], rtol=1e-6)
        assert np.asarray(stats.moments[0].unseen).tolist() == [[False, False, True, False]]


def test_uses_of_one_weight_at_sizes_far_apart_add_up():
    w, x = draw(0, 8, 8), draw(1, 40, 8)
    fn = lambda p, x: (x @ p["w"], (x * 1e20) @ p["w"])  # noqa: E731
    (stats,) = jp.calibrate(fn, {"w": w}, [x], moments="full").values()
    np.testing.assert_allclose(stats.input_norms[:, 0], np.linalg.norm(x, axis=0) * 1e20, rtol=1e-5)
    new, masks = jp.reconstruct(fn, {"w": w}, [x], 0.5)
    alone, wanted = jp.reconstruct(dense, {"w": w}, [x], 0.5)
    np.testing.assert_array_equal(masks["w"], wanted["w"])
    np.testing.assert_allclose(new["w"], alone["w"], rtol=1e-3, atol=1e-4)


def test_compensate_and_unit_scores_at_any_size():
    params = {"up": draw(0, 6, 8), "down": draw(1, 8, 3)}
    fn = lambda p, x: (x @ p["up"]) @ p["down"]  # noqa: E731
    x = draw(2, 40, 6)
    groups = jp.find_groups(fn, params, x)
    plan = jp.surgery.plan_units(groups, {"down[0]": np.arange(8) != 5})
    wanted = jp.compensate(fn, params, plan, [x])["down"]
    scores = [
        jp.surgery.obs_scores(groups, params, jp.calibrate(fn, params, [x * size], moments="full"))["down[0]"]
        for size in (1, 1e-20, 1e20)
    ]
    for size, score in zip((1e-20, 1e20), scores[1:], strict=True):
        np.testing.assert_allclose(
            jp.compensate(fn, params, plan, [x * size])["down"], wanted, rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(score, scores[0], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_weights_that_are_not_finite_are_named(bad):
    with pytest.raises(ValueError, match=r"`params` must be finite, .* 'w'"):
        jp.reconstruct(dense, {"w": draw(0, 8, 4).at[2, 1].set(bad)}, [draw(1, 20, 8)])


# Rows


@pytest.mark.parametrize("method", METHODS[3:], ids=str)
def test_no_row_is_an_error(method):
    w, x = draw(0, 8, 4), draw(1, 20, 8)
    with pytest.raises(ValueError, match=r"`batches` must give every weight at least one row .* 'w'"):
        jp.reconstruct(dense, {"w": w}, [x[:0]], method=method)
    with pytest.raises(ValueError, match=r"`row_weights` must give .* 'w'"):
        jp.reconstruct(dense, {"w": w}, [x], method=method, row_weights=lambda x: jnp.zeros(20))
    for nothing in ([], iter(())):
        with pytest.raises(ValueError, match="at least one batch"):
            jp.reconstruct(dense, {"w": w}, nothing, method=method)


def test_no_row_is_an_error_for_statistics_and_for_a_weight_used_twice():
    w, x = draw(0, 8, 8), draw(1, 20, 8)
    twice = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]  # noqa: E731
    for call in (jp.calibrate, jp.reconstruct):
        with pytest.raises(ValueError, match=r"at least one row .* 'w'"):
            call(twice, {"w": w}, [x[:0], x[:0]])
    masks = {"w": jnp.abs(w) > 0.5}
    with pytest.raises(ValueError, match=r"at least one row .* 'w'"):
        jp.swap_refine(dense, {"w": w}, jp.apply_masks({"w": w}, masks), masks, [x[:0]])


# Parts of a weight


def two_thirds(p, x):
    return x @ p["w"][:, :4]


def overlapping(p, x):
    return (x @ p["w"][:, :4]).sum() + (x @ p["w"][:, 2:]).sum()


@pytest.mark.parametrize(("fn", "message"), [(two_thirds, "32 of the 48"), (overlapping, "overlap in part")])
def test_a_weight_that_can_not_be_pruned_as_a_whole_is_an_error(fn, message):
    with pytest.raises(ValueError, match=rf"{message}.*'w'|'w'.*{message}"):
        jp.reconstruct(fn, {"w": draw(0, 8, 6)}, [draw(1, 20, 8)])


@pytest.mark.parametrize(
    "fn",
    [
        lambda p, x: (x @ p["w"][:, :4], jnp.tanh(x) @ p["w"][:, 4:]),
        lambda p, x: (x @ p["w"][::2].T, x @ p["w"][1::2].T),
        lambda p, x: (jnp.tanh(x) @ p["w"][:, :3], x @ p["w"]),
        lambda p, x: (x @ p["w"], jnp.tanh(x) @ p["w"].T),
        lambda p, x: (x @ p["w"], jnp.tanh(x) @ p["w"], x @ p["w"][:, 2:5]),
    ],
    ids=["two parts", "every other row", "a slice and the whole", "transposed", "twice and a slice"],
)
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_slices_that_hold_all_lose_the_asked_share_of_the_whole(fn, share):
    params, x = {"w": draw(0, 8, 8)}, draw(1, 30, 8)
    new, masks = jp.reconstruct(fn, params, [x], share)
    assert np.sum(~np.asarray(masks["w"])) == np.sum(np.asarray(new["w"]) == 0) == round(share * 64)


# N:M


@pytest.mark.parametrize("method", [jp.MaskOnly(), jp.SparseGPT(), jp.ADMM()], ids=lambda m: type(m).__name__)
def test_a_pattern_takes_its_own_sparsity_only(method):
    params, batches = {"a": draw(0, 8, 8), "b": draw(1, 8, 4)}, [draw(2, 30, 8)]
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    for wrong in (0.9, 0.25, jnp.float32(0.9), {"a": 0.5, "b": 0.25}):
        with pytest.raises(ValueError, match=r"`sparsity` must be 0.5 for NM\(2, 4\)"):
            jp.reconstruct(fn, params, batches, wrong, jp.NM(2, 4), method)
    for structure, share in ((jp.NM(1, 4), 0.75), (jp.NM(2, 4), 0.5)):  # by default the pattern's own
        assert jp.sparsity(*jp.reconstruct(fn, params, batches, structure=structure, method=method)) == share
    new, masks = jp.reconstruct(fn, params, batches, {"a": 0.0, "b": 0.5}, jp.NM(2, 4), method)
    assert masks["a"] is True and np.sum(~np.asarray(masks["b"])) == 16
    np.testing.assert_array_equal(new["a"], params["a"])


def images(params, x):
    for name in ("rgb", "hidden"):
        x = jnp.tanh(
            lax.conv_general_dilated(
                x, params[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        )
    return x


def test_what_a_pattern_does_not_fit_stays_dense_and_is_named():
    params, batches = {"rgb": draw(0, 3, 3, 3, 8), "hidden": draw(1, 3, 3, 8, 4)}, [draw(2, 2, 5, 5, 3)]
    for method in (jp.SparseGPT(), jp.MaskOnly()):
        with pytest.warns(UserWarning, match=r"NM\(2, 4\): `m` does not divide .* stay dense: 'rgb'"):
            new, masks = jp.reconstruct(images, params, batches, structure=jp.NM(2, 4), method=method)
        assert masks["rgb"] is True
        np.testing.assert_array_equal(new["rgb"], params["rgb"])
        np.testing.assert_array_equal(np.asarray(masks["hidden"]).reshape(3, 3, 2, 4, 4).sum(3), 2)
    both = {"rgb": True, "hidden": True}
    for named in ({"where": both}, {"where": lambda p: both}, {"sparsity": {"rgb": 0.5, "hidden": 0.5}}):
        with pytest.raises(ValueError, match="'rgb' with 3"):
            jp.reconstruct(images, params, batches, structure=jp.NM(2, 4), **named)
    wide = {"rgb": draw(3, 4, 4, 3, 8)}  # 48 inputs, but groups of four would mix the channels of neighbours
    with pytest.raises(ValueError, match="'rgb' with 3"):
        jp.reconstruct(images, params | wide, batches, structure=jp.NM(2, 4), where=both)
    alone = lambda p, x: images(p | {"hidden": params["hidden"]}, x)  # noqa: E731
    with pytest.raises(ValueError, match="'rgb' with 3"):
        jp.reconstruct(alone, {"rgb": params["rgb"]}, batches, structure=jp.NM(2, 4))
    new, masks = jp.reconstruct(images, params, batches, {"rgb": 0.0, "hidden": 0.5}, jp.NM(2, 4))
    assert masks["rgb"] is True and jp.sparsity(new, masks) == 0.5


# Settings of JAX


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_64_bit_mode_changes_neither_dtypes_nor_counts(dtype):
    with jax.enable_x64(True):
        params = {"a": jnp.asarray(draw(0, 8, 8), dtype) / 3, "b": jnp.asarray(draw(1, 8, 4), dtype) / 3}
        fn = lambda p, x: (x + jnp.tanh(x @ p["a"])) @ p["b"]  # noqa: E731
        x = jnp.asarray(draw(2, 30, 8), dtype)
        for method in (jp.SparseGPT(), jp.ADMM())[: 1 + (dtype == "float64")]:
            more = {"refine": (jp.Swaps(2), jp.LeastSquares(2)), "fisher": jax.tree.map(jnp.square, params)}
            new, masks = jp.reconstruct(fn, params, [x], 0.5, method=method, dense_targets=0.5, **more)
            assert new["a"].dtype == dtype and jp.sparsity(new, masks) == 0.5
            new, masks = jp.swap_refine(fn, params, new, masks, [x])
            assert new["b"].dtype == dtype and int((new["b"] == 0).sum()) == 16
        new, masks = jp.reconstruct(fn, params, [x], structure=jp.NM(2, 4), method=jp.MaskOnly())
        np.testing.assert_array_equal(new["a"], jnp.where(masks["a"], params["a"], 0))  # to the last bit
        stats = jp.calibrate(fn, params, [x], moments="full")
        assert jp.scores.wanda(params, stats)["a"].dtype == jnp.float32
        mlp = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
        groups = jp.find_groups(mlp, params, x)
        scores = jp.surgery.obs_scores(groups, params, jp.calibrate(mlp, params, [x], moments="full"))
        plan = jp.plan_removal(groups, params, 0.5, score=scores, budget="units")
        assert jp.compensate(mlp, params, plan, [x])["b"].dtype == dtype


def test_nothing_needs_implicit_promotion_of_ranks_or_dtypes():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        params, x = {"a": draw(0, 8, 8), "b": draw(1, 8, 4)}, draw(2, 30, 8)
        fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
        refine, fisher = (jp.Swaps(2), jp.LeastSquares(2)), jax.tree.map(jnp.square, params)
        more = {"refine": refine, "fisher": fisher, "dense_targets": 0.5}
        for method, options in ((jp.MaskOnly(), {}), (jp.SparseGPT(), more), (jp.ADMM(), {})):
            new, masks = jp.reconstruct(fn, params, [x], 0.5, method=method, **options)
            assert jp.sparsity(new, masks) == 0.5
        stats = jp.calibrate(fn, params, [x], moments="full", row_weights=lambda x: jnp.arange(30) < 20)
        jp.make_masks(jp.scores.ria(params, stats), 0.5, where={"a": True, "b": True})
        groups = jp.find_groups(fn, params, x)
        scores = jp.surgery.obs_scores(groups, params, stats)
        plan = jp.plan_removal(groups, params, 0.5, score=scores, budget="units")
        assert np.isfinite(jp.compensate(fn, params, plan, [x])["b"]).all()


def test_swap_refine_leaves_dense_what_a_pattern_does_not_fit():
    params = {"up": draw(0, 6, 8), "down": draw(1, 8, 4)}

    def fn(p, x):
        return jax.nn.relu(x @ p["up"]) @ p["down"]

    batches = [draw(2, 32, 6)]
    masks = {
        "up": jnp.ones((6, 8), bool),
        "down": jp.make_masks({"down": jnp.abs(params["down"])}, 0.5, structure=jp.NM(2, 4))["down"],
    }
    pruned = jp.apply_masks(params, masks)
    new, better = jp.swap_refine(fn, params, pruned, masks, batches, jp.NM(2, 4))
    assert bool(better["up"].all()) and jnp.array_equal(new["up"], params["up"])
    assert int(better["down"].sum()) == 16
