"""Least-squares compensation of what remains after units have been removed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from unit_models import (
    conv_net,
    conv_params,
    damped,
    draw,
    group_of,
    heads,
    heads_params,
    least_error,
    mlp,
    mlp_params,
    plan_of,
    refitted,
)

import jaxprune as jp
from jaxprune.surgery import obs_scores, plan_units


def test_refit_is_least_squares_on_the_kept_rows_in_float64():
    params, batches = mlp_params(0), [draw(1, 30, 6), draw(2, 30, 6)]
    groups = jp.find_groups(mlp, params, batches[0])
    plan = plan_of(groups, "down[0]", (1, 4, 6))
    layers = []
    new = jp.compensate(mlp, params, plan, batches, damping=0.05, on_layer=layers.append)
    h = np.tanh(
        np.concatenate(batches).astype(np.float64) @ np.asarray(params["up"]) + np.asarray(params["up_bias"])
    )
    w = np.asarray(params["down"], np.float64)
    _, expected = least_error(damped(h.T @ h, 0.05), w, (1, 4, 6))
    np.testing.assert_allclose(new["down"], expected, rtol=1e-3, atol=1e-4)
    assert not np.asarray(new["down"])[[1, 4, 6]].any() and not np.asarray(new["up"])[:, [1, 4, 6]].any()
    (layer,) = layers
    assert layer.path == "down" and layer.sparsity == pytest.approx(3 / 8)
    assert layer.error == pytest.approx(np.sum((h @ (expected - w)) ** 2) / np.sum((h @ w) ** 2), rel=1e-3)


@pytest.mark.slow
def test_what_loses_no_input_stays_as_it_was_and_masked_is_shrunk():
    params, x = mlp_params(0), draw(1, 50, 6)
    groups = jp.find_groups(mlp, params, x)
    plan = plan_of(groups, "down[0]", (0, 3))
    new = jp.compensate(mlp, params, plan, [x])
    kept = np.array([1, 2, 4, 5, 6, 7])
    for name in ("up", "up_bias", "bias"):
        np.testing.assert_array_equal(plan.shrink(new)[name], plan.shrink(params)[name])
    assert not np.allclose(np.asarray(new["down"])[kept], np.asarray(params["down"])[kept])
    assert plan.verify(mlp, new, x).ok
    np.testing.assert_allclose(plan.compact(mlp)(plan.shrink(new), x), mlp(new, x), rtol=1e-4, atol=1e-5)


def test_nothing_to_remove_changes_nothing():
    params, x = mlp_params(0), draw(1, 9, 6)
    plan = jp.plan_removal(jp.find_groups(mlp, params, x), params, 0.0)
    new = jp.compensate(mlp, params, plan, [x])
    jax.tree.map(np.testing.assert_array_equal, new, params)


@pytest.mark.slow
def test_a_duplicate_unit_goes_without_loss():
    params, x = mlp_params(0), draw(1, 60, 6)
    for name, axis in (("up", 1), ("up_bias", 0)):
        twin = jnp.take(params[name], 2, axis)
        params[name] = params[name].at[(slice(None),) * axis + (5,)].set(twin)
    groups, stats = jp.find_groups(mlp, params, x), jp.calibrate(mlp, params, [x], moments="full")
    scores = obs_scores(groups, params, stats, damping=1e-5)["down[0]"]
    assert np.argmin(scores) in (2, 5) and scores.min() < 1e-4
    new = jp.compensate(mlp, params, plan_of(groups, "down[0]", [5]), [x], damping=1e-6)
    np.testing.assert_allclose(mlp(new, x), mlp(params, x), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(new["down"][2], params["down"][2] + params["down"][5], rtol=1e-3, atol=1e-3)


MODELS = {
    "hidden units": (mlp, mlp_params(0), (40, 6)),
    "heads": (heads, heads_params(0), (40, 6)),
    "channels, depthwise": (conv_net, conv_params(0, True), (3, 6, 6, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_no_output_gets_worse_than_by_masking_alone(name, damping):
    fn, params, shape = MODELS[name]
    x = draw(9, *shape)
    groups = jp.find_groups(fn, params, x)
    plan = jp.plan_removal(groups, params, 0.5, budget="units")
    masked, new = (
        jp.apply_masks(params, plan.masks(params)),
        jp.compensate(fn, params, plan, [x], damping=damping),
    )
    dense = fn(params, x)
    before, after = (
        np.asarray(jnp.square(fn(p, x) - dense), np.float64).reshape(-1, dense.shape[-1]).sum(0)
        for p in (masked, new)
    )
    assert (after <= before * (1 + 1e-4)).all()
    assert after.sum() < (0.7 if damping < 1 else 0.95) * before.sum()
    assert plan.verify(fn, new, x).ok
    jax.tree.map(
        lambda w, m: np.testing.assert_array_equal(w, jp.apply_masks([w], [m])[0]), new, plan.masks(params)
    )


@pytest.mark.slow
def test_layers_see_the_refitted_layers_before_them_with_their_own_units_still_there():
    params, x = {"up": draw(0, 4, 6), "mid": draw(1, 6, 8), "out": draw(2, 8, 3)}, draw(3, 80, 4)

    def fn(p, x):
        return jnp.tanh(jnp.tanh(x @ p["up"]) @ p["mid"]) @ p["out"]

    groups = jp.find_groups(fn, params, x)
    first, second = np.arange(6) % 3 > 0, np.arange(8) % 4 > 0
    plan = plan_units(groups, {group_of(groups, "up", 1): first, group_of(groups, "out", 0): second})
    seen = []
    new = jp.compensate(fn, params, plan, [x[:40], x[40:]], damping=1e-3, on_layer=seen.append)
    h = np.tanh(np.asarray(x, np.float64) @ np.asarray(params["up"], np.float64))
    mid = refitted(h, h, params["mid"], first, 1e-3)
    h = np.tanh(h @ mid)  # all 8 units
    np.testing.assert_allclose(new["mid"], mid * second, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(new["out"], refitted(h, h, params["out"], second, 1e-3), rtol=2e-3, atol=2e-3)
    assert [(layer.path, round(layer.sparsity, 3)) for layer in seen] == [("mid", 0.333), ("out", 0.25)]


@pytest.mark.slow
def test_padding_does_not_count_whatever_it_holds():
    params, x = mlp_params(0), draw(1, 7, 5, 6)
    padding = jnp.arange(5) < jnp.array([5, 4, 3, 2, 5, 1, 5])[:, None]
    groups = jp.find_groups(mlp, params, x)
    plan = plan_of(groups, "down[0]", (1, 4, 6))
    rows = x[padding]
    plain = jp.compensate(mlp, params, plan, [rows])
    for fill in (jnp.nan, 1e3):
        filled = jnp.where(padding[..., None], x, fill)
        fn = lambda p, x, padding: mlp(p, x)  # noqa: E731
        new = jp.compensate(fn, params, plan, [(filled, padding)], row_weights=lambda x, padding: padding)
        np.testing.assert_allclose(new["down"], plain["down"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fewer_rows_than_inputs_and_dead_inputs_stay_finite():
    params = mlp_params(0)
    params["up"] = params["up"].at[:, 1].set(0)
    params["up_bias"] = params["up_bias"].at[1].set(0)
    x = draw(1, 4, 6)
    groups, stats = jp.find_groups(mlp, params, x), jp.calibrate(mlp, params, [x], moments="full")
    for damping in (0.0, 1e-3):
        scores = obs_scores(groups, params, stats, damping)
        assert np.isfinite(scores["down[0]"]).all()
        plan = jp.plan_removal(groups, params, 0.5, score=scores, budget="units")
        new = jp.compensate(mlp, params, plan, [x], damping=damping)
        assert np.isfinite(new["down"]).all()
        np.testing.assert_allclose(mlp(new, x), mlp(params, x), rtol=0.05, atol=0.05)  # 4 units, 4 rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"damping": -1.0}, "`damping` must not be negative"),
        ({"params": {"up": jnp.ones((6, 8))}}, "it lacks"),
        ({"params": mlp_params(0, outputs=4)}, r"'bias' must have shape \(5,\), as in the plan, got \(4,\)"),
        ({"batches": []}, "at least one batch"),
        ({"row_weights": lambda x: jnp.ones(9)}, r"\(9,\)"),
        ({"batches": [jnp.full((20, 6), jnp.nan)]}, "finite inputs to every weight"),
    ],
)
def test_mistakes_in_compensation_are_named(change, message):
    params, x = mlp_params(0), draw(1, 20, 6)
    plan = plan_of(jp.find_groups(mlp, params, x), "down[0]", [3])
    given = {"params": params, "batches": [x]} | change
    with pytest.raises(ValueError, match=message):
        jp.compensate(mlp, given.pop("params"), plan, given.pop("batches"), **given)


def test_tracers_are_refused_as_everywhere():
    params, x = mlp_params(0), draw(1, 20, 6)
    plan = plan_of(jp.find_groups(mlp, params, x), "down[0]", [3])
    with pytest.raises(TypeError, match="outside `jit`"):
        jax.jit(lambda p: jp.compensate(mlp, p, plan, [x]))(params)
