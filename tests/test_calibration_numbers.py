"""Calibration with numbers at the edges of float32, in 64-bit mode and without implicit promotion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_weight import dense, draw

import jaxprune as jp

# Numbers whose squares leave float32


@pytest.mark.slow
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


@pytest.mark.slow
def test_statistics_hold_small_and_large_inputs_beside_each_other():
    x = np.array([[1.0, 2e-25, 0, 3e20], [1.0, -1e-25, 0, 1e20]], np.float32)
    for kind in ("diagonal", "full"):
        (stats,) = jp.calibrate(dense, {"w": jnp.ones((4, 1))}, [x[:1], x[1:]], moments=kind).values()
        np.testing.assert_allclose(
            stats.input_norms[:, 0], [2**0.5, 5**0.5 * 1e-25, 0, 10**0.5 * 1e20], rtol=1e-6
        )
        np.testing.assert_allclose(stats.input_means[:, 0], [1, 0.5e-25, 0, 2e20], rtol=1e-6)
        assert np.asarray(stats.moments[0].unseen).tolist() == [[False, False, True, False]]


@pytest.mark.slow
def test_uses_of_one_weight_at_sizes_far_apart_add_up():
    w, x = draw(0, 8, 8), draw(1, 40, 8)
    fn = lambda p, x: (x @ p["w"], (x * 1e20) @ p["w"])  # noqa: E731
    (stats,) = jp.calibrate(fn, {"w": w}, [x], moments="full").values()
    np.testing.assert_allclose(stats.input_norms[:, 0], np.linalg.norm(x, axis=0) * 1e20, rtol=1e-5)
    new, masks = jp.reconstruct(fn, {"w": w}, [x], 0.5)
    alone, wanted = jp.reconstruct(dense, {"w": w}, [x], 0.5)
    np.testing.assert_array_equal(masks["w"], wanted["w"])
    np.testing.assert_allclose(new["w"], alone["w"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
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


# Settings of JAX


@pytest.mark.slow
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


@pytest.mark.slow
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
