"""Optimizer states of the small parameters: as if the optimizer had only ever seen the kept units."""

import functools

import jax
import jax.numpy as jnp
import optax
import plain_layers
import plain_models
import pytest
from checks import difference, random_plan

import jaxprune as jp

OPTIMIZERS = {
    "sgd": optax.sgd(1e-2),
    "momentum": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2),
    "lion": optax.lion(1e-2),
    "rmsprop": optax.rmsprop(1e-2, momentum=0.9),
    "adagrad": optax.adagrad(1e-2),
    "adadelta": optax.adadelta(1e-2),
    "amsgrad": optax.amsgrad(1e-2),
    "adan": optax.adan(1e-2),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-2), 2),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
    "multi_transform": optax.multi_transform(
        {"a": optax.adam(1e-2), "b": optax.sgd(1e-2, momentum=0.9)},
        lambda params: {name: "b" if name.startswith("b") else "a" for name in params},
    ),
    "flatten": optax.flatten(optax.adam(1e-2)),
    "masked": optax.masked(optax.adam(1e-2), lambda params: {name: name != "w1" for name in params}),
    "ema": optax.chain(optax.adam(1e-2), optax.ema(0.9)),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2),
    "adafactor, not factored": optax.adafactor(1e-2),
}


@pytest.fixture(scope="module")
def model():
    fn, params, inputs = plain_models.mlp()
    plan = random_plan(jp.find_groups(fn, params, *inputs))
    return params, plan


@functools.partial(jax.jit, static_argnums=0)
def advance(tx, params, grads):
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_has_the_shapes_of_a_small_one_and_the_values_of_the_full_one(model, name):
    params, plan = model
    tx = OPTIMIZERS[name]
    grads = jax.tree.map(jnp.cos, params)
    after, state = advance(tx, params, grads)
    small_state = plan.shrink_opt_state(state)
    small = plan.shrink(params)
    fresh = jax.eval_shape(tx.init, small)
    assert jax.tree.structure(small_state) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, small_state) == jax.tree.map(jnp.shape, fresh)
    if not name.startswith("adafactor"):  # every other one treats each weight by itself
        alone, alone_state = advance(tx, small, plan.shrink(grads))
        assert difference(plan.shrink(after), alone) < 1e-6
        floats = [
            [x for x in jax.tree.leaves(s) if jnp.issubdtype(x.dtype, jnp.floating) and x.size]
            for s in (small_state, alone_state)
        ]
        assert not floats[0] or difference(*floats) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("width", "keep"), [(8, 6), (8, 3), (4, 3)])
def test_factored_moments_of_adafactor(width, keep):
    """Axes that stay the largest, axes that change places, and parameters too small to be factored."""
    params = plain_layers.weights(up=(5, width), down=(width, 5))
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 5)))
    plan = jp.plan_removal(groups, params, 1 - keep / width, budget="units")
    for smallest in (2, 4):
        tx = optax.adafactor(1e-2, min_dim_size_to_factor=smallest)
        _, state = advance(tx, params, jax.tree.map(jnp.cos, params))
        small_state = plan.shrink_opt_state(state, min_dim_size_to_factor=smallest)
        small = plan.shrink(params)
        fresh = jax.eval_shape(tx.init, small)
        assert jax.tree.map(jnp.shape, small_state) == jax.tree.map(jnp.shape, fresh)
        updates, _ = jax.jit(tx.update)(small, small_state, small)
        assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


@pytest.mark.slow
def test_factored_moments_stand_for_the_same_second_moments():
    params = plain_layers.weights(up=(5, 8), down=(8, 5))
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 5)))
    plan = jp.plan_removal(groups, params, 0.5, budget="units")
    _, state = advance(optax.adafactor(1e-2, min_dim_size_to_factor=2), params, jax.tree.map(jnp.cos, params))

    def second_moment(state):
        factored = next(
            s for s in jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "v_row")) if hasattr(s, "v_row")
        )
        row, column = factored.v_row["up"], factored.v_col["up"]
        return row, column

    row, column = second_moment(state)  # of (5, 8): rows over the inputs, columns over the units
    assert row.shape == (5,) and column.shape == (8,)
    full = jnp.outer(row, column) / row.mean()
    row, column = second_moment(plan.shrink_opt_state(state, min_dim_size_to_factor=2))
    assert row.shape == (4,) and column.shape == (5,)  # (5, 4): now the inputs are the larger axis
    assert difference(jnp.outer(column, row) / row.mean(), full[:, plan.kept["up"][1]]) < 1e-5


def test_paths_of_nested_and_framework_states():
    params = {"params": {"layer": {"kernel": jnp.ones((3, 4))}, "out": {"kernel": jnp.ones((4, 1))}}}

    def fn(v, x):
        return jnp.tanh(x @ v["params"]["layer"]["kernel"]) @ v["params"]["out"]["kernel"]

    plan = random_plan(jp.find_groups(fn, params, jnp.ones((1, 3))))
    state = optax.adam(1e-3).init(params)
    small = plan.shrink_opt_state(state)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(
        jnp.shape, optax.adam(1e-3).init(plan.shrink(params))
    )


def test_says_which_array_of_the_state_is_not_understood(model):
    params, plan = model
    with pytest.raises(ValueError, match=r"array of shape \(5,\) at 'mu/w1'"):
        plan.shrink_opt_state({"mu": {**params, "w1": jnp.ones(5)}})


# Whose steps mix the weights of a parameter, or all of them: the shapes are right and the kept slices are there.
MIXING = {
    "sm3": optax.sm3(1e-2),
    "lbfgs": optax.scale_by_lbfgs(3),
    "muon": optax.contrib.muon(1e-2),
    "prodigy": optax.contrib.prodigy(),
    "mechanize": optax.contrib.mechanize(optax.adam(1e-2)),
    "prefix of labels": optax.partition(
        {"a": optax.adam(1e-2), "b": optax.sm3(1e-2)}, {"up": "a", "mu": "b", "down": "b"}
    ),
    "movement": jp.sparse_training.movement(optax.adam(1e-2), jp.schedules.constant(0.5)),
}


@pytest.fixture(scope="module")
def nested():
    params = {"up": jnp.ones((3, 4)), "mu": {"up": jnp.ones((3, 6))}, "down": jnp.ones((10, 2))}

    def fn(p, x):
        return jnp.tanh(jnp.concatenate([x @ p["up"], x @ p["mu"]["up"]], 1)) @ p["down"]

    groups = jp.find_groups(fn, params, jnp.ones((1, 3)))
    keep = {"up[1]": [True, False, True, False], "mu/up[1]": [True] * 5 + [False]}
    return params, jp.surgery.plan_units(groups, keep)


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("name", MIXING)
def test_states_of_optimizers_that_mix_weights(nested, name):
    params, plan = nested
    tx, small = MIXING[name], plan.shrink(params)
    state = jax.jit(tx.init)(params)
    numbered = jax.tree.map(
        lambda x: jnp.arange(1.0 * x.size).reshape(x.shape) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        state,
    )
    found = plan.shrink_opt_state(numbered)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, jax.eval_shape(tx.init, small))
    rows = jnp.arange(20.0).reshape(10, 2)[plan.kept["down"][0]]
    whole = [x for x in jax.tree.leaves(found) if x.shape[-2:] == (7, 2) and x.dtype == rows.dtype]
    assert whole and all((x.reshape(-1, 7, 2)[0] == rows).all() for x in whole)


def test_one_statistic_for_each_entry_of_each_axis(nested):
    params, plan = nested
    state = optax.sm3(1e-2).init(params)
    state = (state[0]._replace(mu={**state[0].mu, "down": [jnp.arange(10.0), jnp.arange(2.0)]}), *state[1:])
    rows, columns = plan.shrink_opt_state(state)[0].mu["down"]
    assert rows.tolist() == [0, 2, 4, 5, 6, 7, 8] and columns.tolist() == [0, 1]


def test_moments_of_projected_gradients_are_not_sliced(nested):
    params, plan = nested
    with pytest.raises(ValueError, match="GaLore's low-rank memory of 'down'"):
        plan.shrink_opt_state(optax.contrib.galore(1e-2).init(params))


def test_fields_and_modules_of_one_name():
    params = {
        "w": jnp.ones((2, 4)),
        "v": jnp.ones((4, 1)),
        "trace": {"w": jnp.ones((2, 4)), "v": jnp.ones((4, 1))},
    }

    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ p["v"] + jnp.tanh(x @ p["trace"]["w"]) @ p["trace"]["v"]

    groups = jp.find_groups(fn, params, jnp.ones((1, 2)))
    keep = {"v[0]": [True, False, False, False], "trace/v[0]": [True, True, False, False]}
    plan = jp.surgery.plan_units(groups, keep)
    state = optax.sgd(1e-2, momentum=0.9).init(params)
    trace = plan.shrink_opt_state(state)[0].trace
    assert jax.tree.map(jnp.shape, trace) == jax.tree.map(jnp.shape, plan.shrink(params))
