"""One-shot pruning: what every method promises, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from one_weight import correlated, dense, draw, error, prune

import jaxprune as jp

METHODS = [jp.MaskOnly("magnitude"), jp.MaskOnly("wanda"), jp.MaskOnly("ria"), jp.SparseGPT(), jp.ADMM()]
STRUCTURES = [jp.Unstructured(), jp.NM(2, 4), jp.Block((4, 3))]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`batches` say nothing about weights")
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_counts_are_exact_pruned_is_zero_and_refinements_never_hurt(method, structure):
    w, x = (
        draw(0, 24, 10),
        correlated(1, 80, 24).at[:, 3].set(0.0),
    )  # 10 is no multiple of 3, an input is dead
    share = 0.5 if isinstance(structure, jp.NM) else 0.6
    got, mask = prune(w, x, share, structure, method)
    np.testing.assert_array_equal(got[~mask], 0)
    assert np.all(np.isfinite(got))
    if isinstance(structure, jp.Block):
        units = mask.reshape(6, 4, 10)[:, :, [0, 3, 6, 9]]
        assert np.sum(~units[:, 0]) == round(0.6 * 24)
        np.testing.assert_array_equal(mask, np.repeat(mask[::4], 4, axis=0))
        return
    if isinstance(structure, jp.NM):
        np.testing.assert_array_equal(mask.reshape(6, 4, 10).sum(axis=1), 2)
    else:
        assert np.sum(~mask) == round(0.6 * 240)
        if method != METHODS[0]:
            assert not mask[3].any()  # dead inputs go first
    start = error(got, w, x)
    for refine in ((jp.LeastSquares(5),), (jp.Swaps(10),)):
        better, new_mask = prune(w, x, share, structure, method, refine=refine)
        assert error(better, w, x) <= start * (1 + 1e-5)
        np.testing.assert_array_equal(better[~new_mask], 0)
        np.testing.assert_array_equal(new_mask.sum(axis=0), mask.sum(axis=0))
        if isinstance(structure, jp.NM):
            np.testing.assert_array_equal(new_mask.reshape(6, 4, 10).sum(axis=1), 2)


@pytest.mark.slow
def test_methods_stand_in_the_order_of_what_they_know():
    w, x = draw(0, 24, 10), correlated(1, 200, 24)
    found = [error(prune(w, x, 0.5, method=m)[0], w, x) for m in METHODS]
    magnitude, wanda, _, sparsegpt, admm = found
    assert admm < sparsegpt < magnitude and admm < wanda < magnitude


@pytest.mark.parametrize("method", METHODS[3:], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_singular_inputs_give_finite_weights_and_small_errors(method, rows):
    w, x = draw(0, 24, 10), draw(1, rows, 24)
    got, mask = prune(w, x, 0.5, method=method, refine=(jp.LeastSquares(5),))
    assert np.sum(~mask) == 120 and np.all(np.isfinite(got))
    assert error(got, w, x) < 0.05 * error(0 * got, w, x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`batches` say nothing about weights")
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_inputs_that_are_all_zero_are_pruned_without_nan(method):
    got, mask = prune(draw(0, 24, 10), jnp.zeros((4, 24)), 0.5, method=method, refine=(jp.Swaps(10),))
    assert np.sum(~mask) == 120 and np.all(np.isfinite(got))


@pytest.mark.parametrize("share", [0.0, 0.99])
def test_extreme_sparsities(share):
    w, x = draw(0, 24, 10), draw(1, 80, 24)
    for method in METHODS[3:]:
        got, mask = prune(w, x, share, method=method)
        assert np.sum(~mask) == round(share * 240)
        if share == 0:
            np.testing.assert_allclose(got, w, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_each_layer_is_pruned_on_what_the_pruned_layers_give():
    params, x = {"a": draw(0, 8, 8), "b": draw(1, 8, 8)}, draw(2, 50, 8)
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    pruned, _ = jp.reconstruct(fn, params, [x[:25], x[25:]], 0.5)
    alone, _ = prune(params["a"], x, 0.5)
    np.testing.assert_allclose(pruned["a"], alone, rtol=1e-4, atol=1e-5)
    second, _ = prune(params["b"], jnp.tanh(x @ pruned["a"]), 0.5)
    np.testing.assert_allclose(pruned["b"], second, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_scanned_layers_are_pruned_as_the_same_layers_in_a_list():
    w, x = draw(0, 3, 8, 8) / 2, draw(2, 50, 8)
    scan = lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"])[0]  # noqa: E731

    def loop(params, x):
        for w in params["w"]:
            x = jnp.tanh(x @ w)
        return x

    stacked, masks = jp.reconstruct(scan, {"w": w}, [x], 0.5)
    listed, _ = jp.reconstruct(loop, {"w": list(w)}, [x], 0.5)
    np.testing.assert_allclose(stacked["w"], jnp.stack(listed["w"]), rtol=1e-4, atol=1e-5)
    assert jp.sparsity(stacked, masks) == 0.5


@pytest.mark.slow
def test_a_shared_weight_is_pruned_once_on_all_its_inputs():
    w, x = draw(0, 8, 8), draw(2, 50, 8)
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]  # noqa: E731
    got, mask = prune(w, x, 0.5, fn=fn)
    together, _ = prune(w, jnp.concatenate([x, jnp.tanh(x @ w)]), 0.5)
    np.testing.assert_allclose(got, together, rtol=1e-3, atol=1e-4)
    assert np.sum(~mask) == 32


@pytest.mark.slow
def test_an_allocation_counts_for_each_leaf_and_results_are_reported():
    params, x = {"a": draw(0, 8, 4), "b": draw(1, 4, 8)}, draw(2, 50, 8)
    results = []
    _, masks = jp.reconstruct(
        lambda p, x: x @ p["a"] @ p["b"],
        params,
        [x],
        {"a": 0.25, "b": 0.75},
        method=jp.MaskOnly("magnitude"),
        on_layer=results.append,
    )
    assert [int(np.sum(~np.asarray(masks[n]))) for n in "ab"] == [8, 24]
    assert [(r.path, r.sparsity) for r in results] == [("a", 0.25), ("b", 0.75)]
    assert all(0 < r.error < 1 for r in results)


def test_what_where_leaves_out_is_not_touched():
    params, x = {"a": draw(0, 8, 8), "b": draw(1, 8, 8)}, draw(2, 50, 8)
    pruned, masks = jp.reconstruct(
        lambda p, x: x @ p["a"] @ p["b"], params, [x], 0.5, where={"a": False, "b": True}
    )
    assert masks["a"] is True
    np.testing.assert_array_equal(pruned["a"], params["a"])


def test_weights_that_multiply_nothing_are_named_and_stay_dense():
    params = {"w": draw(0, 8, 8), "shift": draw(1, 8, 8)}
    fn = lambda p, x: (x + p["shift"]) @ p["w"]  # noqa: E731
    with pytest.warns(UserWarning, match="'shift'"):
        pruned, masks = jp.reconstruct(fn, params, [draw(2, 50, 8, 8)], 0.5)
    assert masks["shift"] is True
    np.testing.assert_array_equal(pruned["shift"], params["shift"])
    jp.reconstruct(fn, params, [draw(2, 50, 8, 8)], 0.5, where={"w": True, "shift": False})


def test_dense_parameters_and_batches_are_left_as_they_were():
    w, x = draw(0, 8, 8), draw(2, 50, 8)
    params = {"w": w + 0}
    jp.reconstruct(dense, params, [x], 0.5)
    np.testing.assert_array_equal(params["w"], w)


@pytest.mark.slow
def test_dense_targets_make_up_for_the_layers_before():
    """What the model gives in the end comes nearer to the dense model."""
    x = correlated(9, 400, 8)
    params = {f"w{i}": draw(i, 8, 8) / 3 for i in range(4)}

    def fn(params, x):
        for w in params.values():
            x = x + jnp.tanh(x) @ w
        return x

    wanted = np.asarray(fn(params, x))
    found = []
    for targets in (0, 0.5, True):
        pruned, _ = jp.reconstruct(fn, params, [x[:200], x[200:]], 0.5, dense_targets=targets)
        found.append(np.sum((np.asarray(fn(pruned, x)) - wanted) ** 2))
    assert found[2] < found[1] < 0.98 * found[0]
    with pytest.raises(ValueError, match=r"`dense_targets` must be in \[0, 1\], got 2"):
        jp.reconstruct(fn, params, [x], 0.5, dense_targets=2)


@pytest.mark.slow
@pytest.mark.parametrize("method", [jp.SparseGPT(), jp.ADMM()], ids=lambda m: type(m).__name__)
def test_fisher_scores_weigh_the_errors_of_the_outputs(method):
    w, x = draw(0, 16, 6), correlated(1, 80, 16)
    minded = np.array([1, 9, 0.1, 1, 4, 0], np.float32)
    fisher = w**2 * jnp.sum(x**2, axis=0)[:, None] * minded
    got, mask = prune(w, x, 0.5, method=method, fisher={"w": fisher})
    scale = np.sqrt(minded / minded.mean() + 1e-3)
    scaled, expected = prune(w * scale, x, 0.5, method=method)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_allclose(got, scaled / scale, rtol=1e-3, atol=1e-4)
    plain, _ = prune(w, x, 0.5, method=method)
    assert error(got * scale, w * scale, x) < error(plain * scale, w * scale, x)
    assert mask[:, 1].sum() > mask[:, 5].sum()


@pytest.mark.slow
def test_fisher_scores_that_say_nothing_change_nothing_and_bad_ones_are_named():
    w, x = draw(0, 16, 6), correlated(1, 80, 16)
    plain, _ = prune(w, x, 0.5)
    alike, _ = prune(w, x, 0.5, fisher={"w": jnp.zeros((16, 6))})
    np.testing.assert_array_equal(alike, plain)
    _, mask = prune(w, x, structure=jp.NM(2, 4), fisher={"w": jnp.ones((16, 6)) * jnp.arange(6)})
    np.testing.assert_array_equal(mask, prune(w, x, structure=jp.NM(2, 4))[1])
    for bad in (-jnp.ones((16, 6)), jnp.full((16, 6), jnp.nan), jnp.ones((6, 16))):
        with pytest.raises(ValueError, match=r"`fisher` must have finite scores .* at 'w'"):
            prune(w, x, 0.5, fisher={"w": bad})
    with pytest.raises(ValueError, match="`fisher` must have the tree structure of the parameters"):
        prune(w, x, 0.5, fisher={"v": jnp.ones((16, 6))})


@pytest.mark.slow
def test_padding_rows_have_no_part_in_the_weights():
    w, x = draw(0, 8, 8), draw(2, 6, 10, 8)
    padding = jnp.arange(10) < 6
    weights = jnp.broadcast_to(padding, (6, 10))
    fn = lambda p, x, weights: x @ p["w"]  # noqa: E731
    params, _ = jp.reconstruct(fn, {"w": w}, [(x, weights)], 0.5, row_weights=lambda x, weights: weights)
    alone, _ = prune(w, x[:, :6].reshape(-1, 8), 0.5)
    np.testing.assert_allclose(params["w"], alone, rtol=1e-3, atol=1e-4)


def test_bfloat16_weights_stay_bfloat16():
    w, x = draw(0, 24, 10).astype(jnp.bfloat16), draw(2, 80, 24).astype(jnp.bfloat16)
    params, masks = jp.reconstruct(dense, {"w": w}, [x], 0.5, method=jp.ADMM())
    assert params["w"].dtype == jnp.bfloat16 and jp.sparsity(params, masks) == 0.5
    ours, dead = error(params["w"], w, x), error(0 * w, w, x)
    assert 0 < ours < 0.3 * dead


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_pruned_as_the_products_they_are(groups):
    """Each output's error on the convolution itself is that of least squares on its kept weights."""
    x, w = draw(0, 4, 6, 6, 8), draw(1, 3, 3, 8 // groups, 4)

    def fn(params, x):
        return lax.conv_general_dilated(
            x,
            params["w"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    got, mask = prune(w, x, 0.5, jp.NM(2, 4), jp.MaskOnly("wanda"), fn=fn)
    better, _ = prune(w, x, 0.5, jp.NM(2, 4), jp.MaskOnly("wanda"), fn=fn, refine=(jp.LeastSquares(60),))
    runs = mask.reshape(3, 3, -1, 4, 4)  # groups of four input channels
    np.testing.assert_array_equal(runs.sum(axis=3), 2)
    np.testing.assert_array_equal(better[~mask], 0)

    def loss(kept):
        return jnp.sum((fn({"w": jnp.where(mask, kept, 0)}, x) - fn({"w": w}, x)) ** 2)

    assert loss(better) < 0.95 * loss(jnp.asarray(got))
    slope = jax.grad(loss)(jnp.asarray(better))  # zero at the least squares solution
    assert jnp.max(jnp.abs(slope)) < 1e-3 * jnp.max(jnp.abs(jax.grad(loss)(jnp.asarray(got))))


@pytest.mark.slow
def test_swap_refine_improves_a_pruned_model_and_keeps_its_pattern():
    params, x = {"a": draw(0, 8, 8), "b": draw(1, 8, 8)}, correlated(2, 100, 8)
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    for structure in (jp.Unstructured(), jp.NM(2, 4)):
        masks = jp.make_masks(jp.scores.magnitude(params), 0.5, structure=structure)
        pruned = jp.apply_masks(params, masks)
        better, new = jp.swap_refine(fn, params, pruned, masks, [x], structure)
        assert error(better["a"], params["a"], x) < 0.9 * error(pruned["a"], params["a"], x)
        for name in "ab":
            kept, before = np.asarray(new[name]), np.asarray(masks[name])
            np.testing.assert_array_equal(kept.sum(axis=0), before.sum(axis=0))
            np.testing.assert_array_equal(np.asarray(better[name])[~kept], 0)
        if isinstance(structure, jp.NM):
            np.testing.assert_array_equal(np.asarray(new["a"]).reshape(2, 4, 8).sum(axis=1), 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"sparsity": 50}, ValueError, "`sparsity`"),
        ({"structure": jp.NM(2, 3)}, ValueError, "'w'"),
        ({"structure": jp.Channels()}, TypeError, "Channels"),
        ({"structure": jp.Block((2, 2, 2))}, ValueError, "inputs, outputs"),
        ({"structure": jp.Block((3, 2)), "method": jp.SparseGPT(block=4)}, ValueError, "multiple of 3"),
        ({"structure": jp.Block((2, 2)), "refine": (jp.Swaps(),)}, TypeError, "Swaps"),
    ],
)
def test_mistakes_are_named(change, kind, message):
    given = {"sparsity": 0.5} | change
    with pytest.raises(kind, match=message):
        jp.reconstruct(dense, {"w": draw(0, 8, 4)}, [draw(1, 5, 8)], **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: jp.SparseGPT(block=0), "block"),
        (lambda: jp.SparseGPT(damping=-1.0), "damping"),
        (lambda: jp.ADMM(rounds=3), "ramp"),
        (lambda: jp.ADMM(rho=0.0), "rho"),
        (lambda: jp.MaskOnly("wand"), "'wand'"),
        (lambda: jp.MaskOnly(None), "or a function of parameters, got None"),  # type: ignore[arg-type]
        (lambda: jp.LeastSquares(0), "steps"),
        (lambda: jp.Swaps(0), "steps"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
