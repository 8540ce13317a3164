"""Mistakes that a prototype made, each a regression test here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import difference, gradient_error, masked_function, random_plan
from jax import lax
from plain_layers import data, rope_table, weights

import jaxprune as jp
from jaxprune.surgery import plan_units


def found(fn, params, *inputs):
    groups = jp.find_groups(fn, params, *inputs)
    return groups, sorted(group.size for group in groups)


def test_size_1_axes_broadcast_without_being_coupled():
    params = weights(a=(3, 8), b=(1, 1), gain=(8,), out=(8, 2))

    def fn(p, x):
        h = (x @ p["a"]) * (1 + p["b"]) + 0.5
        return (h * (h.mean(-1, keepdims=True) + p["gain"])) @ p["out"]

    groups, sizes = found(fn, params, data(4, 3))
    assert sizes == [8]
    assert random_plan(groups).verify(fn, params, data(4, 3)).ok


def test_a_vmapped_dynamic_slice_passes_whole_axes_through():
    params = weights(w=(3, 8), out=(8, 2))

    def fn(p, x, starts):
        h = jnp.tanh(x @ p["w"])  # (4, 5, 8)
        rows = jax.vmap(lambda h, i: lax.dynamic_slice(h, (i, 0), (2, 8)))(h, starts)
        return rows.sum(1) @ p["out"]

    inputs = (data(4, 5, 3), jnp.array([0, 3, 1, 2]))
    groups, sizes = found(fn, params, *inputs)
    assert sizes == [8]
    assert random_plan(groups).verify(fn, params, *inputs).zeroed < 1e-5


def test_calls_of_one_jitted_function_have_axes_of_their_own():
    layer = jax.jit(lambda x, w: jnp.tanh(x @ w))
    params = weights(a=(8, 8), b=(8, 8), c=(8, 8), out=(8, 2))

    def fn(p, x):
        return layer(layer(layer(x, p["a"]), p["b"]), p["c"]) @ p["out"]

    groups, sizes = found(fn, params, data(4, 8))
    assert sizes == [8, 8, 8]
    assert random_plan(groups).verify(fn, params, data(4, 8)).ok


def test_captured_constants_are_sliced():
    params = weights(w=(3, 8), out=(8, 2))
    gain, table = data(8, seed=3), np.arange(16.0, dtype=np.float32).reshape(2, 8)

    def fn(p, x):
        return (jnp.tanh(x @ p["w"]) * gain * jnp.asarray(table)[1]) @ p["out"]

    groups, sizes = found(fn, params, data(4, 3))
    assert sizes == [8]
    plan = random_plan(groups)
    assert plan.verify(fn, params, data(4, 3)).zeroed < 1e-5
    keep = plan.kept["out"][0]
    small = plan.shrink(params)
    by_hand = (jnp.tanh(data(4, 3) @ small["w"]) * gain[keep] * table[1][keep]) @ small["out"]
    assert difference(plan.compact(fn)(small, data(4, 3)), by_hand) < 1e-6


def test_rows_of_a_table_that_no_input_reaches_are_no_group():
    params = weights(pos=(16, 3), w=(3, 8), out=(8, 2))

    def fn(p, x):
        return jnp.tanh((x + p["pos"][: x.shape[1]]) @ p["w"]) @ p["out"]

    groups, sizes = found(fn, params, data(2, 7, 3))
    assert sizes == [8]
    assert any("nothing sums over it" in frozen.reason for frozen in groups.frozen)
    plan = random_plan(groups)
    assert plan.compact(fn)(plan.shrink(params), data(2, 11, 3)).shape == (2, 11, 2)


@pytest.mark.slow
def test_derivative_rules_are_rebuilt_not_inlined():
    params = {"w": jnp.zeros((3, 8)), "out": jnp.ones((8, 2))}  # relu at exactly 0, where its rule says 0

    def loss(fn, p):
        return fn(p, jnp.ones((1, 3))).sum()

    def fn(p, x):
        return jax.nn.relu(x @ p["w"]) @ p["out"]

    groups, _ = found(fn, params, jnp.ones((1, 3)))
    plan = random_plan(groups)
    gradient = jax.grad(functools.partial(loss, plan.compact(fn)))(plan.shrink(params))
    assert jnp.all(gradient["w"] == 0)
    twice = jax.grad(lambda p: jax.grad(functools.partial(loss, plan.compact(fn)))(p)["w"].sum())
    assert jnp.all(twice(plan.shrink(params))["out"] == 0)


def test_a_derivative_rule_that_mixes_units_freezes_them():
    @jax.custom_jvp
    def strange(x):
        return jnp.sin(x)

    strange.defjvps(lambda t, ans, x: jnp.sort(t, -1))
    params = weights(w=(3, 8), out=(8, 2))
    groups, sizes = found(lambda p, x: strange(x @ p["w"]) @ p["out"], params, data(4, 3))
    assert sizes == []
    assert any("sorted at test_surgery_pitfalls.py" in frozen.reason for frozen in groups.frozen)


def test_remat_stays_remat():
    params = weights(w=(3, 8), out=(8, 2))

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable)
    def block(x, w):
        return jnp.tanh(x @ w)

    def fn(p, x):
        return block(x, p["w"]) @ p["out"]

    groups, _ = found(fn, params, data(4, 3))
    plan = random_plan(groups)
    jaxpr = jax.make_jaxpr(plan.compact(fn))(plan.shrink(params), data(4, 3))
    (equation,) = [e for e in jaxpr.eqns if "policy" in e.params]
    assert equation.params["policy"] is jax.checkpoint_policies.dots_saveable


def test_dead_code_holds_nothing():
    params = weights(w=(3, 8), out=(8, 2))

    def fn(p, x):
        h = jnp.tanh(x @ p["w"])
        jnp.sort(h, -1)
        return h @ p["out"]

    assert found(fn, params, data(4, 3))[1] == [8]


def test_vocabulary_and_one_hot_axes_stay():
    params = weights(table=(11, 6), out=(6, 2))
    tokens = jnp.array([[1, 2, 10]])

    def lookup(p, t):
        return p["table"][t] @ p["out"]

    def one_hot(p, t):
        return jax.nn.one_hot(t, 11) @ p["table"] @ p["out"]

    def rows_of_eye(p, t):
        return jnp.eye(11)[t] @ p["table"] @ p["out"]

    def rows_of_jitted_one_hot(p, t):
        return (
            jnp.take(jax.jit(lambda: jax.nn.one_hot(jnp.arange(11), 11) * 2)(), t, 0) @ p["table"] @ p["out"]
        )

    for fn in (lookup, one_hot, rows_of_eye, rows_of_jitted_one_hot):
        groups, sizes = found(fn, params, tokens)
        assert sizes == [6], str(groups)
    assert "one-hot" in str(found(rows_of_eye, params, tokens)[0])


def test_a_causal_mask_is_a_table_like_one_of_numpy():
    params = weights(keys=(7, 3), values=(7, 2))

    def fn(tril, p, x):
        return jax.nn.softmax(x @ p["keys"].T) @ tril(np.ones((7, 7), np.float32)) @ p["values"]

    for tril in (jnp.tril, np.tril):
        groups, sizes = found(functools.partial(fn, tril), params, data(4, 3))
        assert sizes == [7, 7]
        assert random_plan(groups).verify(functools.partial(fn, tril), params, data(4, 3)).masked < 1e-5


def test_dropout_keeps_the_random_numbers_of_the_units_that_stay():
    params = weights(w=(3, 8), out=(8, 2))

    def fn(p, x, key):
        h = jnp.tanh(x @ p["w"])
        return jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h, 0) @ p["out"]

    inputs = (data(4, 3), jax.random.key(3))
    groups, _ = found(fn, params, *inputs)
    assert random_plan(groups).verify(fn, params, *inputs).zeroed < 1e-6


def test_rotary_pairs_stay_together():
    params = weights(w=(3, 2 * 8), out=(16, 2))

    def fn(p, x):
        h = (x @ p["w"]).reshape(*x.shape[:2], 2, 8)
        first, second = jnp.split(h, 2, -1)
        angle = rope_table(x.shape[1], 8)[:, None]
        h = h * jnp.cos(angle) + jnp.concatenate([-second, first], -1) * jnp.sin(angle)
        return h.reshape(*x.shape[:2], 16) @ p["out"]

    groups, sizes = found(fn, params, data(2, 5, 3))
    assert sizes == [2, 4]
    pairs = next(group for group in groups if group.size == 4)
    plan = plan_units(groups, {pairs.name: [True, False, True, True]})
    assert plan.kept["w"][1].reshape(2, 8).tolist() == [[True, False, True, True] * 2] * 2
    small = jax.jit(plan.compact(fn))(plan.shrink(params), data(2, 9, 3))
    assert difference(small, masked_function(plan, fn, params, data(2, 9, 3))(params, data(2, 9, 3))) < 1e-5


def test_group_name_lookup_and_table():
    params = weights(a=(3, 8), b=(8, 6), c=(6, 2))
    groups, _ = found(lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"], params, data(1, 3))
    assert groups["a[1]"].size == 8
    assert [g.size for g in groups.of("b", 0)] == [8] and groups.of("c", 1) == ()
    first, rest = str(groups).split("\n\n")
    assert first.splitlines()[0] == "group   units   members"
    assert first.splitlines()[2].startswith(
        "a[1]        8   a[1], b[0]  (summed at test_surgery_pitfalls.py:"
    )
    assert groups["a[1]"].source.startswith("test_surgery_pitfalls.py:")
    assert rest.splitlines()[0] == "frozen   because"
    assert rest.splitlines()[2:] == ["a[0]     axis 1 of input 0", "c[1]     axis 1 of the output"]


def test_two_arrays_with_one_path_are_an_error():
    with pytest.raises(ValueError, match="more than one array at the path 'a'"):
        jp.find_groups(lambda p, x: x, {"params": {"a": jnp.ones(2)}, "a": jnp.ones(2)}, jnp.ones(2))


def test_analysis_is_linear_in_the_equations():
    def deep(layers):
        params = [weights(seed=i, w=(8, 8)) for i in range(layers)]

        def fn(p, x):
            for layer in p:
                x = x + jnp.tanh(x @ layer["w"])
            return x @ jnp.ones((8, 1))

        groups = jp.find_groups(fn, params, data(2, 8))
        return sum(len(axes) for axes in groups.model.frame.axes.values())

    assert deep(40) - deep(20) == deep(60) - deep(40)


def test_a_vmapped_while_loop_has_a_predicate_for_each_member():
    params = weights(w=(3, 8), out=(8, 2))

    def fn(p, x):
        h = jnp.tanh(x @ p["w"])
        h = jax.vmap(lambda row: lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 0.5, row))(h)
        return jnp.sin(h) @ p["out"]

    groups, sizes = found(fn, params, data(4, 3))
    assert sizes == [8]
    report = random_plan(groups).verify(fn, params, data(4, 3))
    assert report.masked < 1e-5 and "reduce_sum" in report.differences[0]


@pytest.mark.slow
def test_closed_over_constants_and_static_arguments_of_derivative_rules():
    table = jnp.arange(1.0, 9.0)

    @jax.custom_jvp
    def scaled(x, k):
        return x * table * k

    scaled.defjvp(lambda primals, tangents: (scaled(*primals), tangents[0] * table * primals[1] * 2))

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def shifted(x, i, mode):
        return x * table + i

    shifted.defvjp(lambda x, i, mode: (shifted(x, i, mode), i), lambda mode, res, g: (g * table * 3, None))
    params = weights(w=(3, 8), out=(8, 2))

    def fn(p, x):
        h = x @ p["w"]
        return (scaled(h, 2) + shifted(h, jnp.arange(4)[:, None], "m")) @ p["out"]

    groups, sizes = found(fn, params, data(4, 3))
    assert sizes == [8]
    plan = random_plan(groups)
    assert plan.verify(fn, params, data(4, 3)).masked < 1e-5
    assert gradient_error(plan, fn, params, data(4, 3)) < 1e-5
