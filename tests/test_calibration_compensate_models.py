"""Least-squares compensation in models of every kind: what a weight's place in the model makes of its refit."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from unit_models import draw, heads_params, mlp, mlp_params, plan_of, refitted

import jaxprune as jp
from jaxprune.surgery import obs_scores


@pytest.mark.slow
def test_a_head_that_is_a_combination_of_others_goes_without_loss():
    """Head 4 gives what heads 0 and 1 give, mixed by a matrix."""

    def fn(p, x):
        return jnp.einsum("nhd,hdo->no", jnp.einsum("ni,ihd->nhd", x, p["value"]) * 2, p["out"])

    params, x = heads_params(0, inputs=20), draw(7, 120, 20)
    mixed = params["value"][:, 0] @ draw(8, 3, 3) + params["value"][:, 1] @ draw(9, 3, 3)
    params["value"] = params["value"].at[:, 4].set(mixed)
    groups = jp.find_groups(fn, params, x)
    name = next(group.name for group in groups if group.size == 5)
    plan = plan_of(groups, name, [4])
    new = jp.compensate(fn, params, plan, [x], damping=1e-6)
    scale = float(jnp.abs(fn(params, x)).max())
    np.testing.assert_allclose(fn(new, x), fn(params, x), atol=1e-3 * scale)
    masked = jp.apply_masks(params, plan.masks(params))
    assert float(jnp.abs(fn(masked, x) - fn(params, x)).max()) > 0.05 * scale


@pytest.mark.slow
def test_a_norm_over_removed_channels_is_made_up_for():
    """What is left of the stream is scaled otherwise: the weights after it are fitted to what they will see."""
    params, x = {"in": draw(0, 4, 6), "out": draw(1, 6, 3)}, draw(2, 80, 4)

    def fn(p, x):
        h = x @ p["in"]
        return (h / jnp.sqrt(jnp.sum(h**2, -1, keepdims=True))) @ p["out"]

    groups = jp.find_groups(fn, params, x)
    plan = plan_of(groups, "in[1]", (1, 4))
    new = jp.compensate(fn, params, plan, [x], damping=1e-3)
    kept = np.isin(np.arange(6), (1, 4), invert=True)
    h = np.asarray(x, np.float64) @ np.asarray(params["in"], np.float64)
    there, here = (a / np.sqrt(np.sum(a**2, -1, keepdims=True)) for a in (h, h * kept))
    np.testing.assert_allclose(
        new["out"], refitted(here, there, params["out"], kept, 1e-3), rtol=1e-3, atol=1e-3
    )
    assert plan.verify(fn, new, x).ok


@pytest.mark.slow
def test_scanned_layers_are_refitted_each():
    params, x = {"up": draw(0, 3, 4, 6), "down": draw(2, 3, 6, 4)}, draw(1, 40, 4)

    def fn(p, x):
        def body(h, layer):
            return h + jnp.tanh(h @ layer["up"]) @ layer["down"], None

        return lax.scan(body, x, p)[0]

    groups = jp.find_groups(fn, params, x)
    (hidden,) = [g.name for g in groups if g.size == 6]
    plan = plan_of(groups, hidden, (0, 3))
    new = jp.compensate(fn, params, plan, [x], damping=1e-3)
    kept = np.array([False, True, True, False, True, True])
    h = np.asarray(x, np.float64)
    for layer in range(3):
        a = np.tanh(h @ np.asarray(params["up"][layer], np.float64))
        down = refitted(a, a, params["down"][layer], kept, 1e-3)
        np.testing.assert_allclose(new["down"][layer], down, rtol=2e-3, atol=2e-3)
        h = h + a @ down
    assert plan.verify(fn, new, x).ok


@pytest.mark.slow
def test_grouped_convolutions_lose_channels_in_each_group():
    def fn(p, x):
        numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        h = jnp.tanh(lax.conv_general_dilated(x, p["first"], (1, 1), "SAME", **numbers))
        return lax.conv_general_dilated(h, p["second"], (1, 1), "SAME", feature_group_count=2, **numbers)

    params, x = {"first": draw(0, 3, 3, 2, 8), "second": draw(1, 3, 3, 4, 6)}, draw(2, 3, 6, 6, 2)
    groups = jp.find_groups(fn, params, x)
    (name,) = [group.name for group in groups if group.size == 4]  # a unit is a channel of each group
    plan = plan_of(groups, name, [1])
    assert plan.small_shapes["second"] == (3, 3, 3, 6)
    new = jp.compensate(fn, params, plan, [x])
    masked = jp.apply_masks(params, plan.masks(params))
    error = lambda p: float(jnp.sum(jnp.square(fn(p, x) - fn(params, x))))  # noqa: E731
    assert error(new) < 0.9 * error(masked)
    assert plan.verify(fn, new, x).ok


@pytest.mark.slow
def test_tied_weights_and_tables_are_only_masked():
    """A weight that encodes and decodes: refitted for one it would spoil the other. So with an embedding."""

    def autoencoder(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"].T

    def language_model(p, ids):
        h = p["table"][ids]
        return (h + jnp.tanh(h @ p["up"]) @ p["down"]) @ p["table"].T

    tied = {"w": draw(0, 6, 8)}
    table = {"table": draw(1, 9, 6), "up": draw(2, 6, 8), "down": draw(3, 8, 6)}
    for fn, params, x, name in (
        (autoencoder, tied, draw(4, 30, 6), "w"),
        (language_model, table, jnp.arange(30) % 9, "table"),
    ):
        groups = jp.find_groups(fn, params, x)
        plan = jp.plan_removal(groups, params, 0.4, budget="units")
        new = jp.compensate(fn, params, plan, [x])
        np.testing.assert_array_equal(new[name], jp.apply_masks(params, plan.masks(params))[name])
        assert plan.verify(fn, new, x).ok
    assert not np.array_equal(plan.shrink(new)["down"], plan.shrink(params)["down"])


def test_a_weight_of_two_uses_is_refitted_for_both():
    params, x = {"up": draw(0, 4, 6), "out": draw(2, 6, 3)}, draw(3, 60, 4)

    def fn(p, x):
        h = jnp.tanh(x @ p["up"])
        return (h @ p["out"]) + jnp.square(h) @ p["out"]

    groups = jp.find_groups(fn, params, x)
    plan = plan_of(groups, "out[0]", (2,))
    new = jp.compensate(fn, params, plan, [x], damping=1e-3)
    h = np.tanh(np.asarray(x, np.float64) @ np.asarray(params["up"], np.float64))
    both = np.concatenate([h, h**2])
    expected = refitted(both, both, params["out"], np.arange(6) != 2, 1e-3)
    np.testing.assert_allclose(new["out"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_bfloat16_stays_bfloat16_and_is_no_worse():
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), mlp_params(0))
    x = draw(1, 200, 6).astype(jnp.bfloat16)
    groups, stats = jp.find_groups(mlp, params, x), jp.calibrate(mlp, params, [x], moments="full")
    scores = obs_scores(groups, params, stats)
    plan = jp.plan_removal(groups, params, 0.5, score=scores, budget="units")
    new = jp.compensate(mlp, params, plan, [x])
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(new))
    masked = jp.apply_masks(params, plan.masks(params))
    error = lambda p: float(jnp.sum(jnp.square((mlp(p, x) - mlp(params, x)).astype(jnp.float32))))  # noqa: E731
    assert error(new) < 0.7 * error(masked)


class Net(eqx.Module):
    """Torch's layout, (outputs, inputs), and leaves that are no arrays."""

    up: jax.Array
    down: jax.Array
    activation: Callable

    def __call__(self, x):
        return self.activation(x @ self.up.T) @ self.down.T


@pytest.mark.slow
def test_modules_and_transposed_weights():
    params, x = mlp_params(0), draw(1, 40, 6)
    net = Net(params["up"].T, params["down"].T, jnp.tanh)
    fn = lambda net, x: net(x)  # noqa: E731
    groups, stats = jp.find_groups(fn, net, x), jp.calibrate(fn, net, [x], moments="full")
    (name,) = [group.name for group in groups]
    scores = obs_scores(groups, net, stats)
    plain = {**params, "up_bias": params["up_bias"] * 0, "bias": params["bias"] * 0}
    plain_stats = jp.calibrate(mlp, plain, [x], moments="full")
    expected = obs_scores(jp.find_groups(mlp, plain, x), plain, plain_stats)["down[0]"]
    np.testing.assert_allclose(scores[name], expected, rtol=1e-4)
    plan = jp.plan_removal(groups, net, 0.5, score=scores, budget="units")
    new = jp.compensate(fn, net, plan, [x])
    same = jp.compensate(
        mlp, plain, plan_of(jp.find_groups(mlp, plain, x), "down[0]", ~plan.kept["down"][1]), [x]
    )
    np.testing.assert_allclose(new.down.T, same["down"], rtol=1e-3, atol=1e-4)
    assert new.activation is jnp.tanh
    small = plan.shrink(new)
    np.testing.assert_allclose(plan.compact(fn)(small, x), fn(new, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_nnx_models():
    model = nnx.Sequential(nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
    graph, params = nnx.split(model)
    fn = lambda params, x: nnx.merge(graph, params)(x)  # noqa: E731
    x = draw(1, 40, 6)
    groups, stats = jp.find_groups(fn, params, x), jp.calibrate(fn, params, [x], moments="full")
    plan = jp.plan_removal(groups, params, 0.5, score=obs_scores(groups, params, stats), budget="units")
    masked, new = jp.apply_masks(params, plan.masks(params)), jp.compensate(fn, params, plan, [x])
    error = lambda p: float(jnp.sum(jnp.square(fn(p, x) - fn(params, x))))  # noqa: E731
    assert error(new) < 0.9 * error(masked) and plan.verify(fn, new, x).ok


def test_sharded_weights_stay_where_they_are():
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("i"))
    params, x = mlp_params(0), draw(1, 40, 6)
    groups = jp.find_groups(mlp, params, x)
    plan = plan_of(groups, "down[0]", (1, 4))
    expected = jp.compensate(mlp, params, plan, [x])
    sharded = {**params, "down": jax.device_put(params["down"], sharding)}
    new = jp.compensate(mlp, sharded, plan, [x])
    assert new["down"].sharding.is_equivalent_to(sharding, 2)
    np.testing.assert_allclose(new["down"], expected["down"], rtol=1e-3, atol=1e-4)
    stats = jp.calibrate(mlp, sharded, [x], moments="full")
    plain = jp.calibrate(mlp, params, [x], moments="full")
    np.testing.assert_allclose(
        obs_scores(groups, sharded, stats)["down[0]"], obs_scores(groups, params, plain)["down[0]"], rtol=1e-3
    )
