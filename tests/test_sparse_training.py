"""RigL, SET, static masks and AC/DC, by hand and by what they promise; bad input to every method."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sorted_selection import operation_by_operation
from sparse_steps import kept_places, mask, once, row, steps_of

import jaxprune as jp
from jaxprune import sparse_training as st

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_move_takes_the_place_of_the_optimizers_step():
    params = {"w": row(4.0, 3.0, 0.0, 0.0), "bias": jnp.ones(2)}
    grads = jax.tree.map(jnp.ones_like, params)
    tx = st.rigl(optax.adam(0.1), masks={"w": mask(1, 1, 0, 0), "bias": True}, end=9, every=2)
    (first, _), (second, state), (third, after) = steps_of(tx, params, lambda p, t: grads, 3)
    assert (first["bias"] != second["bias"]).all()
    np.testing.assert_array_equal(second["bias"], third["bias"])
    assert int(state.inner_state[0].count) == int(after.inner_state[0].count) == 2
    assert int(after.count) == 3


@pytest.mark.slow
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


@pytest.mark.slow
def test_where_leaves_the_other_masks_where_they_are():
    params = {"a": jax.random.normal(jax.random.key(0), (6, 6)), "b": jnp.ones((6, 6))}
    start = jax.tree.map(lambda w: jnp.arange(36).reshape(6, 6) < 18, params)
    tx = st.set(
        optax.sgd(0.1), masks=start, end=9, every=1, where={"a": True, "b": False}, key=jax.random.key(2)
    )
    _, state = steps_of(tx, params, lambda p, t: p, 5)[-1]
    np.testing.assert_array_equal(state.masks["b"], start["b"])
    assert (state.masks["a"] != start["a"]).any() and int(state.masks["a"].sum()) == 18


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_bad_input_is_named():
    sgd, key, params = optax.sgd(0.1), jax.random.key(0), {"w": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match="pass either `sparsity`"):
        st.rigl(sgd, end=5)
    with pytest.raises(ValueError, match="pass either `sparsity`"):
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
