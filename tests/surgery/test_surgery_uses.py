"""Plans in use: shared constants, nested derivative rules, leaves of all kinds, devices, state that goes round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import difference, masked_function, random_plan
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from plain_layers import attention, data, rope, rope_table, weights
from plain_models import mlp

import jaxprune as jp
from jaxprune.surgery import plan_units


def sizes(groups):
    return sorted(group.size for group in groups)


# Constants: a use couples what meets in it, not all uses of one array.


def two_layers_with_rope(table):
    def fn(p, x):
        b, t, _ = x.shape
        angles = table(t)
        for i in range(2):
            q, k, v = ((x @ p[f"{n}{i}"]).reshape(b, t, 2, 8) for n in ("q", "k", "v"))
            x = attention(rope(q, angles), rope(k, angles), v).reshape(b, t, 16) @ p[f"o{i}"]
        return x

    shapes = {f"{n}{i}": (5 if i == 0 else 6, 16) for i in range(2) for n in ("q", "k", "v")}
    return fn, weights(**shapes, o0=(16, 6), o1=(16, 2)), (data(2, 3, 5),)


def angles_of_positions(length):
    return jnp.arange(length)[:, None] / 100.0 ** jnp.tile(jnp.arange(4) / 4, 2)


TABLE = rope_table(3, 8)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("table", [lambda t: TABLE, lambda t: jnp.sin(TABLE), angles_of_positions])
def test_layers_that_share_a_table_prune_other_pairs(table):
    fn, params, inputs = two_layers_with_rope(table)
    groups = jp.find_groups(fn, params, *inputs)
    assert sizes(groups) == [2, 2, 4, 4, 6, 8, 8]  # heads, pairs, stream, dimensions of values
    pairs = [group for group in groups if group.size == 4]
    keep = {pairs[0].name: [True, False, True, False], pairs[1].name: [False, False, False, True]}
    plan = plan_units(groups, keep)
    assert (plan.small_shapes["q0"], plan.small_shapes["q1"]) == ((5, 8), (6, 4))
    report = plan.verify(fn, params, *inputs)
    assert report.masked < 1e-5 and report.zeroed < 1e-5


def test_one_array_of_zeros_starts_two_recurrent_layers():
    def fn(p, x):
        zeros = jnp.zeros((x.shape[1], 6))
        for i in range(2):
            _, x = lax.scan(lambda h, x, i=i: (jnp.tanh(x @ p[f"x{i}"] + h @ p[f"h{i}"]),) * 2, zeros, x)
        return x @ p["out"]

    params = weights(x0=(3, 6), h0=(6, 6), x1=(6, 6), h1=(6, 6), out=(6, 2))
    groups = jp.find_groups(fn, params, data(4, 2, 3))
    assert sizes(groups) == [6, 6]
    assert random_plan(groups).verify(fn, params, data(4, 2, 3)).zeroed < 1e-5


@pytest.mark.slow
def test_a_constant_weight_used_twice_is_cut_two_ways():
    mix = data(8, 8, seed=5)

    def fn(p, x):
        h = jax.jit(lambda h: jnp.tanh(h @ mix))(jnp.tanh(x @ p["w"]))
        return jnp.sin(jnp.sin(h * mix[0] @ mix) * mix[:, 1]) @ p["out"]

    params = weights(w=(3, 8), out=(8, 2))
    groups = jp.find_groups(fn, params, data(4, 3))
    assert sizes(groups) == [8, 8]
    keep = {"w[1]": np.arange(8) % 2 == 0, "out[0]": np.arange(8) < 3}
    plan = plan_units(groups, keep)
    assert plan.verify(fn, params, data(4, 3)).zeroed < 1e-5
    small = plan.shrink(params)
    by_hand = jnp.tanh(jnp.tanh(data(4, 3) @ small["w"]) @ mix[::2]) * mix[0] @ mix[:, :3]
    by_hand = jnp.sin(jnp.sin(by_hand) * mix[:3, 1]) @ small["out"]
    assert difference(plan.compact(fn)(small, data(4, 3)), by_hand) < 1e-6


@pytest.mark.slow
def test_constants_pass_through_calls_branches_and_loops():
    table = data(2, 8, seed=7)

    @jax.jit
    def call(h, table):
        return h * table[0], table, jnp.cos(table)

    def fn(p, x):
        h, same, cosine = call(x @ p["w"], table)
        h = lax.cond(x.sum() > 0, lambda h, t: h * t[0], lambda h, t: h + t[1], h, same)
        h, rows = lax.scan(lambda h, row: (jnp.tanh(h * row), row), h, cosine)
        return jax.checkpoint(lambda h, t: jnp.sin(h * t[1]))(h + rows.sum(0), same) @ p["out"]

    params = weights(w=(3, 8), out=(8, 2))
    groups = jp.find_groups(fn, params, data(4, 3))
    assert sizes(groups) == [8]
    plan = random_plan(groups)
    assert plan.verify(fn, params, data(4, 3)).zeroed < 1e-5
    assert plan.verify(fn, params, -data(4, 3)).zeroed < 1e-5


@pytest.mark.slow
def test_bodies_that_give_constants():
    table = data(4, 8, seed=7)

    @jax.custom_jvp
    def straight(x):
        return x, table

    straight.defjvp(lambda p, t: (straight(*p), (2 * t[0], jnp.zeros((4, 8)))))

    def fn(p, x):
        h = x @ p["w"]
        h = h + lax.cond(x.sum() > 0, lambda h: h, lambda h: jnp.ones((4, 8)), h)
        h = h + lax.cond(x.sum() > 0, lambda h: table, lambda h: jnp.sin(h), h)
        carry, (rows, ones) = lax.scan(lambda c, _: (table, (c * h, jnp.ones((8,)))), h, None, length=3)
        last = lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.full((4, 8), 0.5)), (0, h))[1]
        same, cosine = jax.checkpoint(lambda h: (h * carry, jnp.cos(table)))(h)
        doubled, table_again = straight(rows.sum(0) + ones.sum(0))
        return (same * cosine + lax.stop_gradient(last) + doubled * table_again) @ p["out"]

    params = weights(w=(3, 8), out=(8, 2))
    groups = jp.find_groups(fn, params, data(4, 3))
    assert sizes(groups) == [8], str(groups)
    plan = random_plan(groups)
    for x in (jnp.abs(data(4, 3)), -jnp.abs(data(4, 3))):
        report = plan.verify(fn, params, x)
        assert report.masked < 1e-5 and report.zeroed < 1e-5, str(report)
        gradient = jax.jit(jax.grad(lambda p, x=x: plan.compact(fn)(p, x)[:, 0].sum()))(plan.shrink(params))
        masked = jp.apply_masks(params, plan.masks(params))
        full = jax.jit(jax.grad(lambda p, x=x: fn(p, x)[:, 0].sum()))(masked)
        assert difference(gradient, plan.shrink(full)) < 1e-5


def test_arrays_of_one_number_are_made_small():
    def fn(p, x):
        h = x @ p["w"]
        return (jnp.maximum(jnp.zeros(h.shape), h) + jnp.full(h.shape, 0.5)) @ p["out"]

    params = weights(w=(3, 8), out=(8, 2))
    plan = random_plan(jp.find_groups(fn, params, data(4, 3)))
    jaxpr = jax.make_jaxpr(plan.compact(fn))(plan.shrink(params), data(4, 3))
    assert "gather" not in str(jaxpr)  # nothing is taken from a full array
    assert plan.verify(fn, params, data(4, 3)).zeroed < 1e-5


# Derivative rules.


@pytest.mark.slow
def test_second_derivatives_of_a_rule_that_calls_its_own_function():
    @jax.custom_jvp
    def growing(x):
        return jnp.sin(x)

    growing.defjvp(lambda primals, tangents: (growing(*primals), 3 * growing(*primals) * tangents[0]))

    @jax.custom_vjp
    def halving(x):
        return jnp.cos(x)

    halving.defvjp(lambda x: (halving(x), x), lambda x, g: (g * halving(x) / 2,))
    params = weights(w=(3, 8), out=(8, 2))

    def fn(p, x):
        h = x @ p["w"]
        return (growing(h) + halving(h)) @ p["out"]

    groups = jp.find_groups(fn, params, data(4, 3))
    assert sizes(groups) == [8]
    plan = random_plan(groups)
    keep, small = plan.kept["w"][1], plan.shrink(params)

    def second(f, p):
        def first(x):
            return jax.grad(lambda x: f(p, x).sum())(x)

        return jax.grad(lambda x: jnp.sum(first(x) ** 2))(data(4, 3))

    by_hand = second(fn, {"w": params["w"] * keep, "out": params["out"] * keep[:, None]})
    assert difference(second(plan.compact(fn), small), by_hand) < 1e-5


# Leaves of all kinds.


@pytest.mark.slow
def test_numbers_integers_and_bools_among_the_parameters():
    params = {
        **weights(w=(3, 8), out=(8, 2)),
        "rate": 0.25,
        "power": 2,
        "training": True,
        "steps": jnp.int32(3),
        "alive": jnp.array([True, True, False, True, True, True, False, True]),
        "order": jnp.arange(8),
        "scale": np.float32(1.5),
        "host": np.linspace(1, 2, 8),
    }

    def fn(p, x):
        h = jnp.tanh(x @ p["w"]) * (1 - p["rate"]) * p["scale"] * p["host"]
        h = jnp.where(p["alive"], h, 0) * (p["order"] + p["steps"]) ** p["power"]
        return (h if p["training"] else -h) @ p["out"]

    groups = jp.find_groups(fn, params, data(4, 3))
    assert sizes(groups) == [8]
    plan = random_plan(groups)
    report = plan.verify(fn, params, data(4, 3))
    assert report.ok and report.zeroed < 1e-5
    small = plan.shrink(params)
    assert (small["rate"], small["power"], small["training"]) == (0.25, 2, True)
    assert small["alive"].dtype == bool and small["order"].dtype == jnp.int32 and small["host"].shape == (4,)
    folded = plan.fold_constants(fn, {**params, "w": jnp.zeros((3, 8))}, data(4, 3))
    assert folded["rate"] == 0.25 and folded["order"] is params["order"]
    assert jp.plan_removal(groups, params, 0.5, budget="units").small_shapes["w"] == (3, 4)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("draw", [jax.random.uniform, jax.random.normal, jax.random.gumbel])
def test_random_numbers_hold_no_units(draw):
    def fn(p, x, key):
        h = jnp.tanh(x @ p["w"])
        return (h + 0.1 * draw(key, h.shape)) @ p["out"]

    inputs = (data(4, 3), jax.random.key(1))
    params = weights(w=(3, 8), out=(8, 2))
    groups = jp.find_groups(fn, params, *inputs)
    assert sizes(groups) == [8], str(groups)
    assert random_plan(groups).verify(fn, params, *inputs).zeroed < 1e-5


@pytest.mark.slow
def test_constant_keys():
    def fn(p, x):
        keys = jnp.broadcast_to(jax.random.key(3), (4,))
        noise = jax.vmap(lambda key: jax.random.normal(key, (8,)))(keys)
        return (jnp.tanh(x @ p["w"]) * noise) @ p["out"]

    params = weights(w=(3, 8), out=(8, 2))
    groups = jp.find_groups(fn, params, data(4, 3))
    assert sizes(groups) == [8]
    assert random_plan(groups).verify(fn, params, data(4, 3)).zeroed < 1e-6


# Devices.


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_parameters_on_eight_devices(axis_type):
    fn, params, (x,) = mlp()
    groups = jp.find_groups(fn, params, x)
    plan = plan_units(groups, {g.name: np.arange(g.size) % 2 == 0 for g in groups})
    expected = plan.compact(fn)(plan.shrink(params), x)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    specs = {"w1": P(None, "model"), "b1": P("model"), "w2": P("model", None), "b2": P(), "w3": P()}
    sharded = {name: jax.device_put(a, NamedSharding(mesh, specs[name])) for name, a in params.items()}
    small = plan.shrink(sharded)
    assert jax.tree.map(jnp.shape, small) == plan.small_shapes
    for name, array in small.items():
        np.testing.assert_array_equal(array, plan.shrink(params)[name])
        if axis_type == AxisType.Explicit:
            assert array.sharding.is_equivalent_to(NamedSharding(mesh, specs[name]), array.ndim)
    masks = plan.masks(params)
    assert masks["w1"].shape == (1, 8)
    sums = jp.surgery.l2_scores(groups, sharded)
    for name, scores in jp.surgery.l2_scores(groups, params).by_group.items():
        np.testing.assert_allclose(sums[name], scores, rtol=1e-6)
    if axis_type == AxisType.Auto:
        with_batch = jax.device_put(x, NamedSharding(mesh, P("data")))
        out = jax.jit(plan.compact(fn))(small, with_batch)
        assert difference(out, expected) < 1e-6


# State that goes round.


@pytest.mark.slow
def test_a_cache_of_keys_and_values_loses_the_heads_that_the_weights_lose():
    def step(p, x, cache_position):
        b, width = x.shape[0], 4
        new = {}
        q, k, v = ((x @ p[n]).reshape(b, 1, 3, width) for n in ("q", "k", "v"))
        for name, value in (("keys", k), ("values", v)):
            new[name] = lax.dynamic_update_slice(p["cache"][name], value, (0, cache_position, 0, 0))
        out = attention(q, new["keys"], new["values"])
        return out.reshape(b, 12) @ p["o"], new

    cache = {"keys": data(2, 5, 3, 4, seed=8), "values": data(2, 5, 3, 4, seed=9)}
    params = {**weights(q=(6, 12), k=(6, 12), v=(6, 12), o=(12, 2)), "cache": cache}
    inputs = (data(2, 6), jnp.int32(3))
    assert sizes(jp.find_groups(step, params, *inputs)) == []
    groups = jp.find_groups(step, params, *inputs, state=lambda p, out: (p["cache"], out[1]))
    assert sizes(groups) == [3, 4, 4]
    plan = random_plan(groups)
    assert plan.verify(step, params, *inputs).zeroed < 1e-5
    small, small_step = plan.shrink(params), jax.jit(plan.compact(step))
    masked_step = masked_function(plan, step, params, *inputs)
    full = params
    for position in range(3):
        inputs = (data(2, 6, seed=position), jnp.int32(position))
        y, small["cache"] = small_step(small, *inputs)
        expected, new = masked_step(full, *inputs)
        full = {**full, "cache": new}
        assert difference(y, expected) < 1e-5


# Saved plans.


def test_a_saved_plan_refuses_other_parameters(tmp_path):
    fn, params, inputs = mlp()
    plan = jp.plan_removal(jp.find_groups(fn, params, *inputs), params, 0.5)
    plan.save(tmp_path / "plan.npz")
    loaded = jp.Plan.load(tmp_path / "plan.npz")
    assert str(loaded) == str(plan)
    for other, message in (
        ({**params, "w1": jnp.ones((3, 9))}, r"'w1' must have shape \(3, 8\)"),
        ({**params, "extra": jnp.ones(2)}, "has 'extra'"),
        ({k: v for k, v in params.items() if k != "b2"}, "lacks 'b2'"),
    ):
        for use in (loaded.shrink, functools.partial(loaded.verify, fn)):
            with pytest.raises(ValueError, match=message):
                use(other) if use == loaded.shrink else use(other, *inputs)


def test_a_captured_random_key_is_no_obstacle():
    key = jax.random.key(0)

    def fn(params, x):
        noise = jax.random.normal(key, (1, 3))
        return jax.nn.relu((x + noise) @ params["up"]) @ params["down"]

    params = {"up": jnp.ones((3, 4)), "down": jnp.ones((4, 2))}
    assert [group.size for group in jp.find_groups(fn, params, jnp.ones((5, 3)))] == [4]
