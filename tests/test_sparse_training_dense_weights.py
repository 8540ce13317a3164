"""Dense weights behind masks: straight-through estimators, Top-KAST and movement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sorted_selection import operation_by_operation
from sparse_steps import kept_places, mask, once, row, steps_of

import jaxprune as jp
from jaxprune import sparse_training as st


@pytest.mark.slow
def test_straight_through_has_the_dense_gradient_of_the_masked_point():
    w = {"w": jax.random.normal(jax.random.key(0), (4, 5)), "bias": jnp.ones(5)}
    masks = jp.make_masks(jp.scores.magnitude(w), 0.5)

    def loss(p):
        return jnp.sum(jnp.tanh(jnp.arange(4.0) @ p["w"] + p["bias"]) ** 2)

    want = jax.grad(loss)(jp.apply_masks(w, masks))
    value, got = jax.jit(jax.value_and_grad(lambda p: loss(st.straight_through(p, masks))))(w)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, want)
    assert float(value) == pytest.approx(float(loss(jp.apply_masks(w, masks))), rel=1e-6)
    assert (np.asarray(got["w"])[~np.asarray(masks["w"])] != 0).any()
    backward = jp.make_masks(jp.scores.magnitude(w), 0.2)
    limited = jax.grad(lambda p: loss(st.straight_through(p, masks, backward)))(w)
    np.testing.assert_allclose(limited["w"], jnp.where(backward["w"], want["w"], 0), rtol=1e-6)


def test_straight_through_forward_mode_bf16_nan_and_leaves_that_are_no_floats():
    w = {"w": row(jnp.nan, 2.0, dtype=jnp.bfloat16), "n": jnp.arange(3)}
    masks = {"w": mask(0, 1), "n": True}
    out, tangent = jax.jvp(
        lambda x: st.straight_through({"w": x, "n": w["n"]}, masks)["w"],
        (w["w"],),
        (row(1.0, 3.0, dtype=jnp.bfloat16),),
    )
    assert out.dtype == jnp.bfloat16 and out.tolist() == [[0, 2]] and tangent.tolist() == [[1, 3]]
    channels = st.straight_through({"w": jnp.ones((2, 3))}, {"w": jnp.array([[True, False, True]])})
    assert channels["w"].tolist() == [[1, 0, 1]] * 2


def test_ste_by_hand_masks_are_those_of_the_updated_weights():
    params = {"w": row(3.0, 1.0, -2.0, 0.5)}
    tx = st.ste(optax.sgd(1.0), 0.5)
    state = tx.init(params)
    assert kept_places(state.masks) == [0, 2]
    updates, state = once(tx, {"w": row(0.0, -5.0, 0.0, 0.0)}, state, params)
    assert optax.apply_updates(params, updates)["w"].tolist() == [[3, 6, -2, 0.5]], "pruned weights learn"
    assert kept_places(state.masks) == [0, 1]


@pytest.mark.slow
def test_ste_follows_a_schedule_every_other_step():
    params = {"w": jax.random.normal(jax.random.key(0), (4, 5))}
    tx = st.ste(optax.sgd(1.0), jp.schedules.linear(0.5, begin=0, end=4), every=2)
    seen = steps_of(tx, params, lambda p, t: jax.tree.map(lambda w: jnp.sin(5 * w + t), p), 6)
    assert [jp.sparsity(p, s.masks) for p, s in seen] == [0, 0.25, 0.25, 0.5, 0.5, 0.5]


@pytest.mark.slow
def test_ste_takes_an_allocation():
    params = {"a": jnp.ones((4, 5)), "b": jnp.ones((2, 2))}
    masks = st.ste(optax.sgd(1.0), {"a": 0.9, "b": 0.0}).init(params).masks
    assert int(masks["a"].sum()) == 2 and masks["b"].all()


@pytest.mark.slow
def test_sr_ste_decays_what_is_pruned_and_only_that():
    params = {"w": jnp.array([[4.0], [-3.0], [2.0], [-1.0]]), "bias": jnp.ones(1)}
    tx = st.sr_ste(optax.sgd(0.1), jp.NM(2, 4), decay=0.5)
    state = tx.init(params)
    grads = {"w": jnp.full((4, 1), 10.0), "bias": jnp.zeros(1)}
    updates, _ = once(tx, grads, state, params)
    # -0.1 (10 + 0.5 (1 - m) w)
    np.testing.assert_allclose(updates["w"][:, 0], [-1, -1, -1.1, -0.95], rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], [0.0])


@pytest.mark.slow
def test_top_kast_by_hand():
    """D = 1/4, D + M = 1/2: A has the decay, B without A four times of it, the rest stands still."""
    params = {"w": row(4.0, 3.0, 2.0, 1.0)}
    tx = st.top_kast(optax.adamw(0.1, weight_decay=0.5), 0.75, backward_sparsity=0.5, decay=0.5)
    state = tx.init(params)
    assert kept_places(state.masks) == [0] and kept_places(state._asdict()["backward_masks"]) == [0, 1]
    updates, state = once(tx, {"w": jnp.ones((1, 4))}, state, params)
    np.testing.assert_allclose(state.inner_state[0].mu["w"], 0.1 * row(1 + 0.5 * 4, 1 + 0.5 * 4 * 3, 0, 0))
    assert updates["w"][0, 2:].tolist() == [0, 0] and (updates["w"][0, :2] < 0).all()


def test_top_kast_moments_end_where_learning_ends():
    params = {"w": row(1.0, 0.9, 0.1)}
    tx = st.top_kast(optax.sgd(1.0, momentum=0.9), 2 / 3, backward_sparsity=1 / 3, decay=0.0)
    (first, state), (second, after) = steps_of(tx, params, lambda p, t: {"w": row(0.0, 0.85, 0.0)}, 2)
    assert kept_places({"w": state.backward_masks["w"]}) == [0, 2], "0.9 has become 0.05"
    np.testing.assert_allclose(second["w"], first["w"])
    np.testing.assert_allclose(after.inner_state[0].trace["w"], row(0.0, 0.0, 0.0))


@pytest.mark.slow
def test_top_kast_sets_are_nested():
    params = {"w": jnp.round(3 * jax.random.normal(jax.random.key(0), (9, 7)))}
    tx = st.top_kast(optax.sgd(0.0), 0.8, backward_sparsity=0.3)
    for _, state in steps_of(tx, params, lambda p, t: p, 1):
        used, learning = state.masks["w"], state.backward_masks["w"]
        assert int(used.sum()) == 63 - round(0.8 * 63) and int(learning.sum()) == 63 - round(0.3 * 63)
        assert bool((learning | ~used).all()), "also among equals"


def test_top_kast_takes_allocations_and_what_is_used_always_learns():
    params = {"a": jnp.ones((4, 5)), "b": jnp.ones((2, 5))}
    tx = st.top_kast(optax.sgd(0.1), {"a": 0.5, "b": 0.2}, backward_sparsity={"a": 0.1, "b": 0.6})
    with operation_by_operation():
        state = tx.init(params)
    assert [int(m.sum()) for m in (state.masks["a"], state.masks["b"])] == [10, 8]
    assert [int(m.sum()) for m in (state.backward_masks["a"], state.backward_masks["b"])] == [18, 8]


# Movement


@pytest.mark.slow
def test_movement_scores_are_the_running_sum_of_minus_w_g():
    params = {"w": jax.random.normal(jax.random.key(0), (3, 4))}
    tx = st.movement(optax.sgd(0.1), jp.schedules.one_shot(0.5, step=4))
    grads = [{"w": jax.random.normal(jax.random.key(t), (3, 4))} for t in range(10, 16)]
    want, before = np.zeros((3, 4), np.float64), params
    for t, (after, state) in enumerate(steps_of(tx, params, lambda p, t: grads[t], 6)):
        want -= np.asarray(before["w"], np.float64) * np.asarray(grads[t]["w"])
        np.testing.assert_allclose(state.movement["w"], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(after["w"], jp.apply_masks(after, state.masks)["w"])
        if t == 4:
            assert set(kept_places(state.masks)) == set(np.argsort(want.ravel())[6:].tolist())
        before = after
    assert jp.sparsity(after, state.masks) == 0.5


def test_movement_learns_masks_where_pruned_weights_may_come_back():
    params = {"w": row(1.0, 1.0)}
    tx = st.movement(optax.sgd(0.01), jp.schedules.constant(0.5), regrow=True)
    # First the first weight is pulled to zero, later the second is, harder.
    seen = steps_of(tx, params, lambda p, t: {"w": row(1.0, 0.0) if t < 2 else row(0.0, 9.0)}, 3)
    assert [kept_places(s.masks) for _, s in seen] == [[1], [1], [0]]
    assert seen[1][0]["w"].tolist() == [[1, 1]], "a pruned weight keeps its value"
    tx = st.movement(optax.sgd(0.01), jp.schedules.constant(0.5))
    seen = steps_of(tx, params, lambda p, t: {"w": row(1.0, 0.0) if t < 2 else row(0.0, 9.0)}, 3)
    assert [kept_places(s.masks) for _, s in seen] == [[1], [1], [1]] and seen[2][0]["w"][0, 0] == 0


def test_movement_forgets_steps_that_are_not_finite():
    params = {"w": row(1.0, 2.0)}
    tx = st.movement(optax.set_to_zero(), jp.schedules.one_shot(0.5, step=1))
    grads = [{"w": row(jnp.nan, jnp.inf)}, {"w": row(-1.0, 1.0)}]
    _, state = steps_of(tx, params, lambda p, t: grads[t], 2)[-1]
    np.testing.assert_array_equal(state.movement["w"], row(1.0, -2.0))
    assert kept_places(state.masks) == [0]


@pytest.mark.slow
def test_ste_takes_an_allocation_that_grows():
    params = {"a": jnp.arange(1.0, 17).reshape(4, 4), "b": jnp.arange(1.0, 17).reshape(4, 4)}
    schedule = jp.schedules.iterative({"a": 0.5, "b": 0.25}, rounds=2, begin=1)
    tx = st.ste(optax.sgd(0.0), schedule)
    state = tx.init(params)
    for _ in range(2):
        _, state = jax.jit(tx.update)(params, state, params)
    assert [int((~m).sum()) for m in jax.tree.leaves(jp.get_masks(state))] == [8, 4]
    with pytest.raises(ValueError, match="'b'"):
        st.ste(optax.sgd(0.0), jp.schedules.constant({"a": 0.5, "b": 1.5})).init(params)
