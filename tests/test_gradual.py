"""`gradual`: masks follow a schedule, or one for each leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizers import OPTIMIZERS, assert_exact_zeros, inputs, params_of, step_of

import jaxprune as jp


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradual_reaches_the_sparsity_holds_zeros_and_forgets_the_pruned(name):
    params, x = params_of(), inputs()
    tx = jp.gradual(OPTIMIZERS[name](), jp.schedules.cubic(0.75, begin=1, end=5, every=2))
    state = tx.init(params)
    step = jax.jit(step_of(tx, x))
    sparsities = []
    for _ in range(7):
        before = jp.get_masks(state)
        params, state = step(params, state)
        masks = jp.get_masks(state)
        sparsities.append(jp.sparsity(params, masks))
        assert_exact_zeros(params, masks)
        assert all(
            bool(jnp.all(old | ~new))
            for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(masks), strict=True)
        )
    assert step.__wrapped__.traces == 1
    want = [round(jp.schedules.cubic(0.75, 1, 5, every=2)(t) * 192) / 192 for t in range(7)]
    assert sparsities == want
    assert sparsities[0] == 0 and sparsities[-1] == 0.75


@pytest.mark.slow
def test_gradual_recomputes_masks_at_the_schedules_steps_only():
    params = params_of()
    calls = []

    def score(p):
        jax.debug.callback(lambda: calls.append(1))
        return jp.scores.magnitude(p)

    tx = jp.gradual(
        optax.adam(0.1), jp.schedules.linear(0.5, begin=4, end=12, every=4, initial=0.1), score=score
    )
    state = tx.init(params)
    step = jax.jit(step_of(tx, inputs()))
    seen = []
    for _ in range(20):
        params, state = step(params, state)
        jax.effects_barrier()
        seen.append(len(calls))
    assert seen == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 8


@pytest.mark.slow
def test_gradual_resets_the_moments_of_newly_pruned_weights_to_their_initial_value():
    params = params_of()
    tx = jp.gradual(optax.chain(optax.adagrad(0.1), optax.trace(0.9)), jp.schedules.one_shot(0.5, step=2))
    state = tx.init(params)
    for _ in range(3):
        params, state = step_of(tx, inputs())(params, state)
    masks = jp.get_masks(state)
    accumulator = state.inner_state[0][0].sum_of_squares["Dense_0"]["kernel"]
    trace = state.inner_state[1].trace["Dense_0"]["kernel"]
    dead = ~np.asarray(masks["Dense_0"]["kernel"])
    assert (np.asarray(accumulator)[dead] == np.float32(0.1)).all() and (np.asarray(trace)[dead] == 0).all()
    assert (np.asarray(accumulator)[~dead] > 0.1).all() and (np.asarray(trace)[~dead] != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs",
    [
        {"scope": "local"},
        {"structure": jp.Channels()},
        {"structure": jp.Block((4, 2))},
        {"structure": jp.NM(2, 4)},
        {"structure": jp.NM(2, 4), "scope": "local"},
        {"score": jp.scores.random, "key": jax.random.key(3)},
        {"score": lambda p: jp.scores.normalize(jp.scores.magnitude(p))},
    ],
)
def test_gradual_with_every_structure_scope_and_score(kwargs):
    params = params_of()
    tx = jp.gradual(optax.adamw(0.1), jp.schedules.iterative(0.5, rounds=2, every=2), **kwargs)
    state = tx.init(params)
    step = jax.jit(step_of(tx, inputs()))
    for _ in range(5):
        params, state = step(params, state)
    masks = jp.get_masks(state)
    assert_exact_zeros(params, masks)
    assert jp.sparsity(params, masks) == pytest.approx(0.5, abs=0.1)
    if "structure" in kwargs and isinstance(kwargs["structure"], jp.NM):
        groups = np.asarray(masks["Dense_0"]["kernel"]).T.reshape(-1, 4)
        assert (groups.sum(1) == 2).all()


@pytest.mark.slow
def test_vmapped_gradual_scores_only_at_steps_where_a_schedule_moves():
    scored = []

    def score(params):
        jax.debug.callback(lambda: scored.append(1))
        return jp.scores.magnitude(params)

    params, x = params_of(), inputs()
    tx = jp.gradual(optax.sgd(0.1), jp.schedules.linear(0.5, begin=1, end=5, every=2), score=score)
    step = jax.jit(jax.vmap(step_of(tx, x)))
    many = jax.tree.map(lambda p: jnp.stack([p, -p]), params)
    state = jax.vmap(tx.init)(many)
    seen = []
    for _ in range(7):
        many, state = step(many, state)
        jax.effects_barrier()
        seen.append(len(scored) > 0)
        scored.clear()
    assert seen == [False, False, False, True, False, True, False]  # 0 to 0.25 at step 3, to 0.5 at step 5


@pytest.mark.slow
def test_a_step_of_gradual_can_be_differentiated_in_the_gradients_it_gets():
    params = {"w": jnp.array([[4.0, 3.0], [2.0, 1.0]])}
    tx = jp.gradual(optax.sgd(0.5), jp.schedules.constant(0.5))

    def after(grads):
        updates, _ = tx.update(grads, tx.init(params), params)
        return optax.apply_updates(params, updates)["w"].sum()

    slope = jax.jit(jax.grad(after))(params)["w"]
    np.testing.assert_array_equal(slope, [[-0.5, -0.5], [0.0, 0.0]])


@pytest.mark.slow
def test_a_single_array_is_a_parameter_tree_too():
    w = jnp.arange(1.0, 9).reshape(2, 4)
    tx = jp.gradual(optax.adam(0.1), jp.schedules.constant(0.5))
    state = tx.init(w)
    updates, state = tx.update(jnp.ones_like(w), state, w)
    assert optax.apply_updates(w, updates)[0].tolist() == [0, 0, 0, 0]


def pruned_of(masks, params):
    return jax.tree.map(lambda m, w: int((~jnp.broadcast_to(m, w.shape)).sum()), masks, params)


@pytest.mark.slow
@pytest.mark.parametrize("made", ["schedule", "function"])
@pytest.mark.parametrize("kwargs", [{}, {"scope": "local", "minimum": 1}, {"structure": jp.Block((2, 2))}])
def test_gradual_with_a_tree_of_shares_brings_each_leaf_to_its_own(made, kwargs):
    params = params_of()
    final = {"Dense_0": {"kernel": 0.75, "bias": 0.0}, "Dense_1": {"kernel": 0.25, "bias": 0.0}}
    ramp = jp.schedules.linear(final, begin=0, end=4)
    schedule = (
        ramp if made == "schedule" else lambda s: jax.tree.map(lambda f: f * jnp.minimum(s / 4, 1), final)
    )
    tx = jp.gradual(optax.adam(0.01), schedule, **kwargs)
    state, step = tx.init(params), jax.jit(step_of(tx, inputs()))
    for t in range(6):
        params, state = step(params, state)
        assert_exact_zeros(params, jp.get_masks(state))
        part = min(t / 4, 1)
        for layer, size in (("Dense_0", 128), ("Dense_1", 64)):
            pruned = pruned_of(jp.get_masks(state), params)[layer]
            exact = part * final[layer]["kernel"] * size
            assert (
                abs(pruned["kernel"] - exact) <= (2 if "structure" in kwargs else 0.5) and pruned["bias"] == 0
            )
    assert step.__wrapped__.traces == 1 and state.sparsity.tolist() == [0.75, 0.25]


@pytest.mark.slow
def test_an_allocation_that_grows_under_vmap_in_bfloat16_and_with_nm():
    final = {"a": 0.5, "b": 0.25}
    params = {
        name: jax.random.normal(jax.random.key(i), (2, 8, 4), jnp.bfloat16) for i, name in enumerate(final)
    }
    tx = jp.gradual(optax.sgd(0.0), jp.schedules.one_shot(final, step=1), structure=jp.NM(2, 4))
    state = jax.vmap(tx.init)(params)
    for want in ({"a": 0, "b": 0}, {"a": 32, "b": 16}):
        _, state = jax.jit(jax.vmap(tx.update))(params, state, params)
        assert pruned_of(jp.get_masks(state), params) == want


@pytest.mark.slow
def test_the_final_count_is_exact_beyond_what_float32_holds():
    """0.9 of 3 * 2^24 is 45298483.2; the float32 nearest to 0.9 is 1.2 units too much."""
    from jaxprune.allocation import counts_to_prune
    from jaxprune.transforms._scheduled import counts_at

    n = 3 * 2**24

    def one(shares):
        return counts_to_prune(shares, [n], "global")

    def two(shares):
        return counts_to_prune(shares, [n, n], "global")

    assert int(jax.jit(lambda s: counts_at(s, 0.9, one))(jnp.float32(0.9))) == round(0.9 * n)
    by_leaf = jax.jit(lambda s: counts_at(s, [0.9, 0.3], two))(jnp.float32([0.9, 0.2]))
    assert [int(count) for count in by_leaf] == [round(0.9 * n), round(float(np.float32(0.2)) * n)]


@pytest.mark.parametrize(
    ("final", "kwargs", "message"),
    [
        ({"a": 0.5}, {}, "`schedule` must have the tree structure of the parameters, but it lacks 'b'"),
        (
            {"a": 0.5, "b": 0.75},
            {"structure": jp.NM(2, 4)},
            "must not pass 0.5, the sparsity of .* got 0.75 at 'b'",
        ),
        ({"a": 0.5, "b": 0.9}, {"minimum": 0.25}, "`minimum` asks for 8 of the 32 units at 'b'"),
    ],
)
def test_a_tree_of_shares_that_cannot_be_is_an_error_at_init(final, kwargs, message):
    params = {"a": jnp.ones((8, 4)), "b": jnp.ones((8, 4))}
    with pytest.raises(ValueError, match=message):
        jp.gradual(optax.sgd(0.1), jp.schedules.constant(final), **kwargs).init(params)
