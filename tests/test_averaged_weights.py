"""Optimizers that keep a second copy of the weights: pruned weights are zero in both."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from optax import contrib

import jaxprune as jp
from jaxprune import sparse_training as st


def weights_of():
    return {"w": jnp.arange(1.0, 17).reshape(4, 4), "bias": jnp.ones(4)}


def step_of(tx, grads=lambda params: jax.tree.map(jnp.cos, params)):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(grads(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", ["masked", "gradual", "rigl"])
def test_evaluation_parameters_of_schedule_free_are_zero_under_masks_that_come_late(name):
    inner, params = contrib.schedule_free_sgd(0.1), weights_of()
    tx = {
        "masked": jp.masked(inner),
        "gradual": jp.gradual(inner, jp.schedules.one_shot(0.5, step=2)),
        "rigl": st.rigl(inner, 0.5, end=9, every=2, key=jax.random.key(0)),
    }[name]
    state, step = tx.init(params), step_of(tx)
    for _ in range(2):
        params, state = step(params, state)
    if name == "masked":
        state = jp.replace_masks(state, {"w": weights_of()["w"] > 8, "bias": True})
    for _ in range(2):
        params, state = step(params, state)
        mask = np.asarray(jp.get_masks(state)["w"])
        evaluated = np.asarray(contrib.schedule_free_eval_params(state.inner_state, params)["w"])
        assert mask.sum() == 8
        assert (evaluated[~mask] == 0).all() and (np.asarray(params["w"])[~mask] == 0).all()
        if name != "rigl":
            assert (evaluated[mask] != 0).all()


WRAPPERS = {
    "masked": lambda inner: jp.masked(inner, {"w": weights_of()["w"] > 8, "bias": True}),
    "gradual": lambda inner: jp.gradual(inner, jp.schedules.one_shot(0.5, step=2)),
    "rigl": lambda inner: st.rigl(inner, 0.5, end=9, every=2, key=jax.random.key(0)),
    "ac_dc": lambda inner: st.ac_dc(inner, 0.5, begin=1, end=3, every=1),
    "movement": lambda inner: st.movement(inner, jp.schedules.one_shot(0.5, step=2)),
}


def fast_gradients(params):
    return jax.tree.map(jnp.cos, params.fast)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", WRAPPERS)
def test_both_weights_of_lookahead_have_the_same_masks_and_zeros(name):
    params = optax.LookaheadParams.init_synced(weights_of())
    tx = WRAPPERS[name](optax.lookahead(optax.adam(0.01), 2, 0.5))
    state, step = tx.init(params), step_of(tx, fast_gradients)
    for _ in range(5):
        params, state = step(params, state)
    masks = jp.get_masks(state)
    np.testing.assert_array_equal(masks.fast["w"], masks.slow["w"])
    assert jp.sparsity(params, masks) == 0.5
    dead = ~np.asarray(masks.fast["w"])
    for part in (params.fast["w"], params.slow["w"], state.inner_state.fast_state[0].mu["w"]):
        assert (np.asarray(part)[dead] == 0).all() and (np.asarray(part)[~dead] != 0).any()


def test_lookahead_takes_new_masks_in_a_scan():
    params = optax.LookaheadParams.init_synced(weights_of())
    tx = jp.masked(optax.lookahead(optax.sgd(0.01), 2, 0.5))
    masks = {"w": weights_of()["w"] > 8, "bias": True}
    state = jp.replace_masks(tx.init(params), masks)

    @jax.jit
    def train(params, state):
        return jax.lax.scan(lambda c, _: (step_of(tx, fast_gradients)(*c), None), (params, state), length=5)[
            0
        ]

    params, _ = train(params, state)
    for part in (params.fast["w"], params.slow["w"]):
        assert (part[:2] == 0).all() and (part[2:] != 0).all()


def test_methods_of_dense_weights_say_that_lookahead_goes_around_them():
    pair = optax.LookaheadParams.init_synced({**weights_of(), "scale": jnp.ones(4)})
    inner = optax.lookahead(optax.sgd(0.1), 2, 0.5)
    for tx in (
        st.ste(inner, 0.5),
        st.top_kast(inner, 0.5, backward_sparsity=0.25),
        st.group_lasso(inner, 0.1, learning_rate=0.1),
        st.slimming(inner, 0.1),
    ):
        with pytest.raises(ValueError, match="put lookahead around it"):
            tx.init(pair)


def test_new_masks_are_refused_inside_an_average_that_would_bring_pruned_weights_back():
    weights = weights_of()
    masks = {"w": weights["w"] > 8, "bias": True}
    inside = {
        "LookaheadState": (optax.lookahead(jp.masked(optax.sgd(0.1)), 2, 0.5), optax.LookaheadParams),
        "ScheduleFreeState": (contrib.schedule_free(jp.masked(optax.sgd(0.1)), 0.1), lambda fast, slow: fast),
    }
    for name, (tx, params_of) in inside.items():
        with pytest.raises(ValueError, match=f"masks inside a {name}"):
            jp.replace_masks(tx.init(params_of(weights, weights)), masks)


def test_weights_that_are_masked_from_the_start_stay_zero_with_the_wrapper_inside():
    weights = weights_of()
    masks = {"w": weights["w"] > 8, "bias": True}
    params = jp.apply_masks(weights, masks)
    tx = contrib.schedule_free(jp.masked(optax.sgd(0.1), masks), 0.1)
    state, step = tx.init(params), step_of(tx)
    for _ in range(2):
        params, state = step(params, state)
    assert (contrib.schedule_free_eval_params(state, params)["w"][:2] == 0).all()
    pair = optax.LookaheadParams.init_synced(jp.apply_masks(weights, masks))
    tx = optax.lookahead(jp.masked(optax.sgd(0.1), masks), 2, 0.5)
    state, step = tx.init(pair), step_of(tx, fast_gradients)
    for _ in range(3):
        pair, state = step(pair, state)
    assert (pair.fast["w"][:2] == 0).all() and (pair.slow["w"][:2] == 0).all()


def test_rounds_of_imp_count_lookaheads_weights_once():
    params = optax.LookaheadParams.init_synced(weights_of())
    tx = jp.masked(optax.lookahead(optax.sgd(0.1), 2, 0.5))
    state = TrainState.create(apply_fn=None, params=params, tx=tx)

    def train_step(state, batch):
        del batch
        return state.apply_gradients(grads=jax.tree.map(jnp.cos, state.params.fast)), {}

    imp = jp.imp(train_step, lambda key, step: step, steps=2, rounds=1, rate=0.5)
    _, history = jax.jit(imp.run)(jax.random.key(0), state)
    assert (history.kept.tolist(), history.sparsity.tolist()) == ([16, 8], [0.0, 0.5])


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", ["gradual", "rigl"])
def test_an_average_of_weights_pruned_at_different_times_is_sparse_once_it_is_masked(name):
    params = weights_of()
    tx = {
        "gradual": jp.gradual(optax.sgd(0.1), jp.schedules.linear(0.5, begin=0, end=3)),
        "rigl": st.rigl(optax.sgd(0.1), 0.5, end=4, every=1, fraction=0.5, key=jax.random.key(0)),
    }[name]
    state, step = tx.init(params), step_of(tx)
    params = jp.apply_masks(params, jp.get_masks(state))
    plain = held = params
    expected = np.array(params["w"], np.float64)
    for _ in range(5):
        params, state = step(params, state)
        masks = jp.get_masks(state)
        plain = optax.incremental_update(params, plain, step_size=0.25)
        held = jp.apply_masks(optax.incremental_update(params, held, step_size=0.25), masks)
        expected = np.where(masks["w"], 0.75 * expected + 0.25 * np.asarray(params["w"], np.float64), 0)
    assert jp.count_zeros(plain).zeros < jp.count_zeros(params).zeros == jp.count_zeros(held).zeros == 8
    np.testing.assert_allclose(held["w"], expected, rtol=1e-6)
    if name == "gradual":  # masks only lose weights: masked where it is read, the average is the same
        np.testing.assert_allclose(jp.apply_masks(plain, masks)["w"], expected, rtol=1e-6)
