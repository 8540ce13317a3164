"""Every method of sparse training, by hand and by what it promises."""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sorted_selection import operation_by_operation

import jaxprune as jp
from jaxprune import sparse_training as st


def row(*values, dtype=jnp.float32):
    return jnp.array([values], dtype)


def mask(*values):
    return jnp.array([values], bool)


def kept_places(masks, name="w"):
    return np.flatnonzero(np.asarray(masks[name])).tolist()


def once(tx, grads, state, params):
    with operation_by_operation():
        return tx.update(grads, state, params)


def steps_of(tx, params, grads_of, n, compiled=False):
    """Parameters and states after each of n steps; test_sparse_training_optimizers compares with programs."""
    with contextlib.nullcontext() if compiled else operation_by_operation():
        state, seen = tx.init(params), []
        update = jax.jit(tx.update) if compiled else tx.update
        for t in range(n):
            updates, state = update(grads_of(params, t), state, params)
            params = optax.apply_updates(params, updates)
            seen.append((params, state))
    return seen


# SET and RigL


def test_rigl_by_hand():
    """Ten kept of twenty, fraction 0.8 at step 2 of 4: round(0.4 * 2 / 2 * (1 + cos(pi / 2)) * 10) = 4 move."""
    w = jnp.concatenate([jnp.arange(1.0, 11), jnp.zeros(10)]).reshape(4, 5)
    start = {"w": jnp.arange(20).reshape(4, 5) < 10}
    g = jnp.concatenate([jnp.zeros(10), jnp.array([0.0, 5, -6, 1, 0, 7, 2, -8, 0, 3])]).reshape(4, 5)
    tx = st.rigl(optax.sgd(0.0), masks=start, end=4, every=2, fraction=0.8)
    seen = steps_of(tx, {"w": w}, lambda p, t: {"w": g}, 4)
    assert kept_places(seen[1][1].masks) == list(range(10)), "step 1 moves nothing"
    params, state = seen[2]
    # The four smallest, 1 to 4, go; the four largest |g| of the pruned, at 11, 12, 15 and 17, come.
    assert kept_places(state.masks) == [4, 5, 6, 7, 8, 9, 11, 12, 15, 17]
    np.testing.assert_array_equal(
        params["w"].ravel(), [0, 0, 0, 0, 5, 6, 7, 8, 9, 10, *[0] * 10], "new weights are zero"
    )


def test_drop_fraction_follows_the_cosine():
    w = jax.random.normal(jax.random.key(0), (20, 20))
    start = {"w": jnp.arange(400).reshape(20, 20) < 100}
    grads = {"w": jnp.where(start["w"], 0.0, 1 + jnp.abs(w))}
    tx = st.rigl(optax.sgd(0.0), masks=start, end=5, every=1, fraction=0.8)
    params = jp.apply_masks({"w": w}, start)
    state = tx.init(params)
    for t in range(7):
        _, after = once(tx, grads, state._replace(count=jnp.int32(t)), params)
        share = 0.4 * (1 + math.cos(math.pi * t / 5)) if 0 < t < 5 else 0
        assert int((start["w"] & ~after.masks["w"]).sum()) == round(share * 100)


def test_rigl_grows_where_the_dense_gradient_is_largest_and_set_does_not_look():
    w = jax.random.normal(jax.random.key(0), (30, 20))
    params, start = {"w": w}, {"w": jnp.arange(600).reshape(30, 20) % 5 == 0}
    grads = {"w": jax.random.normal(jax.random.key(2), w.shape)}
    params = jp.apply_masks(params, start)
    grown = {}
    for name, make in (("rigl", st.rigl), ("set", functools.partial(st.set, key=jax.random.key(3)))):
        tx = make(optax.sgd(0.1), masks=start, end=10**6, every=1, fraction=0.5)
        _, state = once(tx, grads, tx.init(params)._replace(count=jnp.int32(1)), params)
        grown[name] = np.asarray(state.masks["w"])
    size, gain = np.abs(np.asarray(params["w"])), np.abs(np.asarray(grads["w"]))
    survivors = size >= np.sort(size[np.asarray(start["w"])])[60]  # half of 120 go
    assert survivors.sum() == 60 and grown["rigl"].sum() == grown["set"].sum() == 120
    assert grown["rigl"][survivors].all() and grown["set"][survivors].all()
    np.testing.assert_array_equal(grown["rigl"], survivors | (gain >= np.sort(gain[~survivors])[-60]))
    chosen_by_chance = gain[grown["set"] & ~survivors].mean() / gain[~survivors].mean()
    assert 0.8 < chosen_by_chance < 1.25


def test_what_was_just_dropped_may_come_back_and_keeps_its_value_and_moments():
    params = {"w": row(3.0, 1.0, 0.0, 0.0)}
    tx = st.rigl(
        optax.trace(0.9), masks={"w": mask(1, 1, 0, 0)}, end=10**6, every=1, fraction=0.5
    )  # round(0.5 * 2) = 1
    state = tx.init(params)
    _, state = once(tx, {"w": row(0.5, 0.25, 0.0, 0.0)}, state, params)
    updates, state = once(tx, {"w": row(0.0, 9.0, 1.0, 1.0)}, state, params)
    assert kept_places(state.masks) == [0, 1], "w[1] is the smallest, and has the largest gradient"
    np.testing.assert_array_equal(updates["w"], row(0.0, 0.0, 0.0, 0.0))
    np.testing.assert_array_equal(state.inner_state.trace["w"], row(0.5, 0.25, 0.0, 0.0))


@pytest.mark.parametrize("make", [st.rigl, functools.partial(st.set, key=jax.random.key(5))])
def test_counts_of_every_layer_stay_zeros_are_exact_and_the_new_start_without_moments(make):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": jax.random.normal(keys[0], (13, 7)),
        "b": jax.random.normal(keys[1], (3, 3, 2, 5)),
        "bias": jnp.ones(3),
    }
    sparsity = {"a": 0.9, "b": 0.5, "bias": 0.0}
    tx = make(optax.adam(0.1), sparsity, end=12, every=2, **({} if make is not st.rigl else {"key": keys[2]}))
    before, moves = None, 0
    waves = lambda p, t: jax.tree.map(lambda w: jnp.cos(w + t * jnp.arange(w.size).reshape(w.shape)), p)  # noqa: E731
    for after, state in steps_of(tx, params, waves, 13):
        assert int(state.masks["a"].sum()) == 91 - round(0.9 * 91)
        assert int(state.masks["b"].sum()) == 45
        for name in "ab":
            dead = np.asarray(after[name])[~np.asarray(state.masks[name])]
            assert (dead == 0).all() and not np.signbit(dead).any()
            new = np.asarray(state.masks[name] & ~(before or state.masks)[name])
            moves += new.sum()
            assert (np.asarray(after[name])[new] == 0).all()
            for moment in (state.inner_state[0].mu, state.inner_state[0].nu):
                assert (np.asarray(moment[name])[new | ~np.asarray(state.masks[name])] == 0).all()
        before = state.masks
    assert moves > 20


def test_a_move_takes_the_place_of_the_optimizers_step():
    params = {"w": row(4.0, 3.0, 0.0, 0.0), "bias": jnp.ones(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    tx = st.rigl(optax.adam(0.1), masks={"w": mask(1, 1, 0, 0), "bias": True}, end=9, every=2)
    (first, _), (second, state), (third, after) = steps_of(tx, params, lambda p, t: grads, 3)
    assert (first["bias"] != second["bias"]).all()
    np.testing.assert_array_equal(second["bias"], third["bias"])
    assert int(state.inner_state[0].count) == int(after.inner_state[0].count) == 2
    assert int(after.count) == 3


@pytest.mark.parametrize("structure", [jp.Channels(), jp.Block((2, 2))])
def test_units_move_as_a_whole(structure):
    params = {"w": jax.random.normal(jax.random.key(0), (8, 10))}
    tx = st.rigl(
        optax.adam(0.1), 0.5, end=100, every=1, fraction=0.6, structure=structure, key=jax.random.key(2)
    )
    seen = steps_of(tx, params, lambda p, t: jax.tree.map(lambda w: jnp.cos(w * t + t), p), 6)
    (_, first), (last, state) = seen[0], seen[-1]
    units = structure.unit_scores(jnp.broadcast_to(state.masks["w"], (8, 10)).astype(jnp.float32))
    assert set(np.unique(units)) == {0.0, 1.0} and float(units.mean()) == 0.5
    assert state.masks["w"].shape == first.masks["w"].shape
    assert (state.masks["w"] != first.masks["w"]).any()
    np.testing.assert_array_equal(last["w"], jp.apply_masks(last, state.masks)["w"])


def test_where_leaves_the_other_masks_where_they_are():
    params = {"a": jax.random.normal(jax.random.key(0), (6, 6)), "b": jnp.ones((6, 6))}
    start = jax.tree.map(lambda w: jnp.arange(36).reshape(6, 6) < 18, params)
    tx = st.set(
        optax.sgd(0.1), masks=start, end=9, every=1, where={"a": True, "b": False}, key=jax.random.key(2)
    )
    _, state = steps_of(tx, params, lambda p, t: p, 5)[-1]
    np.testing.assert_array_equal(state.masks["b"], start["b"])
    assert (state.masks["a"] != start["a"]).any() and int(state.masks["a"].sum()) == 18


def test_gradients_that_are_not_finite_do_not_corrupt_the_masks():
    params = {"w": jax.random.normal(jax.random.key(0), (10, 10))}
    start = {"w": jnp.arange(100).reshape(10, 10) % 2 == 0}
    tx = st.rigl(optax.sgd(0.1), masks=start, end=10**6, every=1, fraction=0.4)
    params, update = jp.apply_masks(params, start), jax.jit(tx.update)
    state = tx.init(params)._replace(count=jnp.int32(1))
    survivors = np.sort(np.abs(params["w"][start["w"]]))[20:]
    for bad in (
        jnp.full((10, 10), jnp.nan),
        jnp.full((10, 10), jnp.inf),
        jnp.ones((10, 10)).at[3, 3].set(jnp.nan),
    ):
        updates, after = update({"w": bad}, state, params)
        assert int(after.masks["w"].sum()) == 50 and np.isfinite(updates["w"]).all()
        assert set(survivors.tolist()) <= set(np.abs(params["w"][after.masks["w"]]).tolist()), (
            "the largest stay"
        )


def test_layers_of_no_weight_one_weight_equal_weights_and_no_sparsity():
    params = {
        "none": jnp.zeros((0, 4)),
        "one": jnp.ones((1, 1)),
        "equal": jnp.ones((4, 4)),
        "full": jnp.ones((2, 2)),
    }
    start = {
        "none": jnp.zeros((0, 4), bool),
        "one": jnp.zeros((1, 1), bool),
        "equal": jnp.arange(16).reshape(4, 4) < 8,
        "full": jnp.ones((2, 2), bool),
    }
    tx = st.rigl(optax.adam(0.1), masks=start, end=99, every=1, fraction=1.0)
    for after, state in steps_of(tx, params, lambda p, t: jax.tree.map(jnp.ones_like, p), 4, compiled=True):
        kept = {name: int(m.sum()) for name, m in state.masks.items()}
        assert kept == {"none": 0, "one": 0, "equal": 8, "full": 4}
        assert all(np.isfinite(w).all() for w in after.values())


def test_static_masks_are_random_counted_by_layer_and_never_move():
    params = {"a": jnp.ones((10, 10)), "b": jnp.ones((5, 8)), "bias": jnp.ones(3)}
    tx = st.static(optax.adamw(0.1), {"a": 0.93, "b": 0.5, "bias": 0.0}, key=jax.random.key(0))
    with operation_by_operation():
        first = tx.init(params).masks
        other = st.static(optax.sgd(0.1), 0.5, key=jax.random.key(1)).init(params).masks
    assert int(first["a"].sum()) == 7 and int(first["b"].sum()) == 20 and first["bias"].ndim == 0
    params, state = steps_of(tx, params, lambda p, t: p, 3)[-1]
    jax.tree.map(np.testing.assert_array_equal, state.masks, first)
    jax.tree.map(np.testing.assert_array_equal, jp.apply_masks(params, first), params)
    assert (other["b"] != first["b"]).any()


def test_replicates_have_masks_of_their_own_when_the_wrapper_is_built_inside_vmap():
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8))}

    def run(key):
        tx = st.set(optax.sgd(0.1), 0.5, end=9, every=1, key=key)

        def step(carry, t):
            updates, state = tx.update(jax.tree.map(jnp.cos, carry[0]), carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(4))[0]

    many, states = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 3))
    masks = np.asarray(states.masks["w"])
    assert (masks.sum((1, 2)) == 32).all() and (masks[0] != masks[1]).any() and (masks[1] != masks[2]).any()
    np.testing.assert_array_equal(many["w"], np.where(masks, many["w"], 0))


# AC/DC


def test_ac_dc_alternates_and_ends_sparse_with_new_masks_each_time():
    params = {"w": jax.random.normal(jax.random.key(0), (6, 8)), "bias": jnp.ones(3)}
    tx = st.ac_dc(optax.sgd(0.5, momentum=0.9), 0.75, begin=2, end=8, every=2)
    seen = steps_of(tx, params, lambda p, t: jax.tree.map(lambda w: jnp.sin(3 * w + t), p), 11)
    sparsities = [jp.sparsity(p, s.masks) for p, s in seen]
    assert sparsities == [0, 0, 0.75, 0.75, 0, 0, 0.75, 0.75, 0.75, 0.75, 0.75], "step 8 goes on sparse"
    for params, state in seen:
        jax.tree.map(np.testing.assert_array_equal, jp.apply_masks(params, state.masks), params)
    np.testing.assert_array_equal(seen[2][1].masks["w"], seen[3][1].masks["w"])
    np.testing.assert_array_equal(seen[6][1].masks["w"], seen[10][1].masks["w"])
    assert (seen[2][1].masks["w"] != seen[6][1].masks["w"]).any()
    want = jp.make_masks(jp.scores.magnitude(seen[5][0]), 0.75)
    np.testing.assert_array_equal(seen[6][1].masks["w"], want["w"], "by magnitude at the phase's start")


def test_ac_dc_begins_a_dense_phase_without_moments():
    params = {"w": row(2.0, 1.0), "bias": jnp.ones(1)}
    grads = {"w": row(0.5, 0.25), "bias": jnp.ones(1)}
    tx = st.ac_dc(optax.trace(0.5), 0.5, begin=1, end=5, every=2)
    traces = [s.inner_state.trace for _, s in steps_of(tx, params, lambda p, t: grads, 4)]
    np.testing.assert_array_equal(traces[0]["w"], row(0.5, 0.25))
    np.testing.assert_array_equal(traces[2]["w"], row(0.5 * 1.75, 0), "sparse: pruned weights have none")
    np.testing.assert_array_equal(traces[3]["w"], row(0.5, 0.25), "dense: that of one step")
    np.testing.assert_array_equal(traces[3]["bias"], [1.0])


def test_ac_dc_from_step_0_on():
    params = {"w": row(2.0, 1.0)}
    tx = st.ac_dc(optax.sgd(0.1), 0.5, begin=0, end=0, every=1)
    assert [jp.sparsity(p, s.masks) for p, s in steps_of(tx, params, lambda p, t: p, 3)] == [0.5] * 3


# Dense weights behind masks


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


def test_ste_follows_a_schedule_every_other_step():
    params = {"w": jax.random.normal(jax.random.key(0), (4, 5))}
    tx = st.ste(optax.sgd(1.0), jp.schedules.linear(0.5, begin=0, end=4), every=2)
    seen = steps_of(tx, params, lambda p, t: jax.tree.map(lambda w: jnp.sin(5 * w + t), p), 6)
    assert [jp.sparsity(p, s.masks) for p, s in seen] == [0, 0.25, 0.25, 0.5, 0.5, 0.5]


def test_ste_takes_an_allocation():
    params = {"a": jnp.ones((4, 5)), "b": jnp.ones((2, 2))}
    masks = st.ste(optax.sgd(1.0), {"a": 0.9, "b": 0.0}).init(params).masks
    assert int(masks["a"].sum()) == 2 and masks["b"].all()


def test_sr_ste_decays_what_is_pruned_and_only_that():
    params = {"w": jnp.array([[4.0], [-3.0], [2.0], [-1.0]]), "bias": jnp.ones(1)}
    tx = st.sr_ste(optax.sgd(0.1), jp.NM(2, 4), decay=0.5)
    state = tx.init(params)
    grads = {"w": jnp.full((4, 1), 10.0), "bias": jnp.zeros(1)}
    updates, _ = once(tx, grads, state, params)
    # -0.1 (10 + 0.5 (1 - m) w)
    np.testing.assert_allclose(updates["w"][:, 0], [-1, -1, -1.1, -0.95], rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], [0.0])


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


# Regularised slimming


def test_group_lasso_is_the_proximal_operator():
    """max(0, 1 - t sqrt(n) / ||w||) w minimises 1/2 ||v - w||^2 + t sqrt(n) ||v||: its gradient is 0 there."""
    w = jax.random.normal(jax.random.key(0), (6, 4)) * jnp.array([1.0, 0.5, 0.03, 0.01])
    tx = st.group_lasso(optax.set_to_zero(), 0.5, learning_rate=0.2)
    updates, state = tx.update({"w": jnp.zeros_like(w)}, tx.init({"w": w}), {"w": w})
    v, w = np.asarray(w + updates["w"], np.float64), np.asarray(w, np.float64)
    norms, t = np.linalg.norm(w, axis=0), 0.1 * math.sqrt(6)
    assert state.masks["w"].tolist() == [(norms > t).tolist()] == [[True, True, False, False]]
    for g in range(4):
        if norms[g] > t:
            np.testing.assert_allclose(
                v[:, g] - w[:, g] + t * v[:, g] / np.linalg.norm(v[:, g]), 0, atol=1e-6
            )
        else:
            assert (v[:, g] == 0).all()
    penalty = st.group_penalty({"w": jnp.asarray(w, jnp.float32)})
    assert float(penalty) == pytest.approx(math.sqrt(6) * norms.sum(), rel=1e-6)


def test_group_lasso_follows_the_learning_rate_and_lets_units_come_back():
    params = {"w": row(0.3, 2.0)}
    tx = st.group_lasso(
        optax.sgd(1.0), 1.0, learning_rate=lambda t: jnp.where(t == 0, 1.0, 0.25), structure=jp.Unstructured()
    )
    grads = [row(0.0, 0.0), row(-1.0, 0.0)]
    (first, state), (second, after) = steps_of(tx, params, lambda p, t: {"w": grads[t]}, 2)
    np.testing.assert_allclose(first["w"], row(0.0, 1.0))
    np.testing.assert_allclose(second["w"], row(0.75, 0.75))
    assert kept_places(state.masks) == [1] and kept_places(after.masks) == [0, 1]


def test_group_lasso_of_strength_0_does_nothing_and_does_not_hide_nan():
    w = {"w": row(1.0, 0.0, jnp.nan)}
    tx = st.group_lasso(optax.set_to_zero(), 0.0, learning_rate=1.0)
    updates, state = tx.update(w, tx.init(w), w)
    np.testing.assert_array_equal(optax.apply_updates(w, updates)["w"], w["w"])
    tx = st.group_lasso(optax.set_to_zero(), 0.5, learning_rate=1.0)
    updates, state = tx.update(w, tx.init(w), w)
    np.testing.assert_array_equal(optax.apply_updates(w, updates)["w"], row(0.5, 0.0, jnp.nan))
    assert kept_places(state.masks) == [0, 2]


def test_group_penalty_has_a_gradient_at_zero_and_skips_what_where_says():
    params = {"w": jnp.zeros((2, 2)), "v": jnp.ones((2, 2))}
    grads = jax.grad(st.group_penalty)(params)
    np.testing.assert_array_equal(grads["w"], jnp.zeros((2, 2)))
    np.testing.assert_allclose(grads["v"], jnp.ones((2, 2)))  # sqrt(2) w / ||w||
    assert float(st.group_penalty(params, where={"w": True, "v": False})) == 0


def test_slimming_adds_the_subgradient_to_scales_only_and_holds_pruned_scales():
    params = {
        "BatchNorm_0": {"scale": jnp.array([2.0, -1.0, 0.0]), "bias": jnp.ones(3)},
        "Dense_0": {"kernel": jnp.ones((3, 2))},
    }
    tx = st.slimming(optax.sgd(1.0), 0.25)
    state = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, state = tx.update(zeros, state, params)
    np.testing.assert_allclose(updates["BatchNorm_0"]["scale"], [-0.25, 0.25, 0])
    assert not any(np.any(u) for u in (updates["BatchNorm_0"]["bias"], updates["Dense_0"]["kernel"]))
    masks = jax.tree.map(lambda m: m, state.masks)
    masks["BatchNorm_0"]["scale"] = jnp.array([True, False, True])
    updates, _ = tx.update(zeros, jp.replace_masks(state, masks), params)
    assert optax.apply_updates(params, updates)["BatchNorm_0"]["scale"][1] == 0


def test_bad_input_is_named():
    sgd, key, params = optax.sgd(0.1), jax.random.key(0), {"w": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="either `sparsity`"):
        st.rigl(sgd, end=5)
    with pytest.raises(ValueError, match="either `sparsity`"):
        st.rigl(sgd, 0.5, masks=params, end=5)
    with pytest.raises(ValueError, match="need a `key`"):
        st.rigl(sgd, 0.5, end=5)
    with pytest.raises(ValueError, match="It is a fraction"):
        st.set(sgd, 90, end=5, key=key)
    with pytest.raises(ValueError, match="`fraction` must be in"):
        st.set(sgd, 0.9, end=5, fraction=30, key=key)
    with pytest.raises(ValueError, match="`every` must be a whole number"):
        st.set(sgd, 0.9, end=5, every=0, key=key)
    with pytest.raises(ValueError, match="see `sr_ste`"):
        st.rigl(sgd, 0.5, end=5, structure=jp.NM(2, 4), key=key)
    with pytest.raises(ValueError, match="`end` must not be before `begin`"):
        st.ac_dc(sgd, 0.5, begin=5, end=4, every=1)
    with pytest.raises(ValueError, match=r"`sparsity` must not pass 0\.5"):
        st.ste(sgd, 0.75, structure=jp.NM(2, 4))
    with pytest.raises(TypeError, match="must be a pattern"):
        st.sr_ste(sgd, jp.Channels())
    with pytest.raises(ValueError, match="m` must divide"):
        st.sr_ste(sgd, jp.NM(2, 3)).init(params)
    with pytest.raises(ValueError, match="`backward_sparsity` must be at most"):
        st.top_kast(sgd, 0.5, backward_sparsity=0.6)
    with pytest.raises(TypeError, match="must map a step to a sparsity"):
        st.movement(sgd, 0.5)
    with pytest.raises(ValueError, match="`strength` must be at least 0"):
        st.group_lasso(sgd, -1.0, learning_rate=0.1)
    with pytest.raises(ValueError, match="matched no parameter"):
        st.slimming(sgd, 0.1).init(params)
    with pytest.raises(ValueError, match="`masks` must"):
        st.straight_through(params, {"v": True})
    for tx in (
        st.rigl(sgd, 0.5, end=5, key=key),
        st.ac_dc(sgd, 0.5, begin=0, end=4, every=1),
        st.ste(sgd, 0.5),
        st.top_kast(sgd, 0.5, backward_sparsity=0.25),
        st.movement(sgd, jp.schedules.constant(0.5)),
        st.group_lasso(sgd, 0.1, learning_rate=0.1),
        st.static(sgd, 0.5, key=key),
    ):
        with pytest.raises(ValueError, match="`params` must be given"):
            tx.update(params, tx.init(params))


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
