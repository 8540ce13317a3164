"""Mistakes that pruning code is known for; each is a regression test here."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.selection import Count, count_to_prune


def pruned(masks):
    return sum(int((~np.asarray(m)).sum()) for m in jax.tree.leaves(masks))


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("n", [1, 2, 3, 10, 101])
@pytest.mark.parametrize("distinct", [1, 2, 1000])
def test_not_one_weight_too_many_also_under_ties(n, distinct):
    scores = {"w": jnp.asarray(np.random.default_rng(n).integers(0, distinct, (1, n)), jnp.float32)}
    for k in range(n):
        assert pruned(jp.make_masks(scores, k / n)) == k


@pytest.mark.slow
def test_pruned_weights_are_not_chosen_again_so_rounds_do_not_prune_too_little():
    w = jax.random.normal(jax.random.key(0), (10, 10))
    first = jp.make_masks({"w": jnp.abs(w)}, 0.2)
    retrained = jax.random.normal(jax.random.key(1), (10, 10))  # large again where it was pruned
    second = jp.make_masks({"w": jnp.abs(retrained)}, 0.36, prior=first)
    assert pruned(second) == 36 and not bool((second["w"] & ~first["w"]).any())


def test_ignored_layers_are_not_in_the_budget():
    scores = {"head": jnp.zeros((100, 100)), "w": jnp.arange(100.0).reshape(10, 10)}
    masks = jp.make_masks(scores, 0.5, where=jp.prunable(scores, exclude="head"))
    assert pruned({"w": masks["w"]}) == 50 and masks["head"] is True
    assert jp.sparsity(scores, masks) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("n", [2**24 + 1, 10**8, 2**31 + 5, 7 * 10**9])
def test_counts_do_not_pass_through_float32(n):
    assert count_to_prune(0.9, n) == round(0.9 * n)
    traced = jax.jit(lambda s: count_to_prune(s, n))(jnp.float32(0.9))
    whole = (int(traced.high) << 32) + int(traced.low) if isinstance(traced, Count) else int(traced)
    assert whole == round(float(np.float32(0.9)) * n)


def test_weight_decay_and_momentum_do_not_revive_pruned_weights_without_a_second_hook():
    params = {"w": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    masks = {"w": jnp.eye(4, dtype=bool), "bias": True}
    warm = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, momentum=0.9))
    tx = jp.masked(warm, masks)
    state = tx.init(params)
    loud = jax.tree.map(lambda p: 1e3 * jnp.ones_like(p), params)
    for _ in range(5):
        updates, state = tx.update(loud, state, params)
        params = optax.apply_updates(params, updates)
        assert not np.asarray(params["w"])[~np.eye(4, dtype=bool)].any()


def test_nan_and_inf_under_a_mask_become_zero():
    w = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1.0])
    assert jp.apply_masks(w, jnp.array([False, False, False, True])).tolist() == [0, 0, 0, 1]


@pytest.mark.slow
def test_nan_gradients_under_a_mask_do_not_reach_the_survivors():
    params = {"w": jnp.ones((1, 2))}
    tx = jp.masked(
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)), {"w": jnp.array([[True, False]])}
    )
    updates, _ = tx.update({"w": jnp.array([[1.0, jnp.nan]])}, tx.init(params), params)
    assert bool(jnp.isfinite(updates["w"]).all())


@pytest.mark.slow
def test_rewinding_keeps_momentum_and_the_schedules_step():
    tx = jp.masked(optax.sgd(optax.linear_schedule(1.0, 0.0, 10), momentum=0.9))
    state = TrainState.create(apply_fn=None, params={"w": jnp.ones((2, 2))}, tx=tx)

    def train_step(state, batch):
        return state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params)), {}

    imp = jp.imp(train_step, lambda key, step: step, steps=5, rounds=1, rewind=jp.Rewind(step=3))
    carry, _ = imp.step(imp.init(jax.random.key(0), state))
    again = imp.rewind.restore(jax.random.key(0), carry.state, carry.snapshot)
    counts = [int(c) for _, c in optax.tree.get_all_with_path(again.opt_state, "count")]
    trace = optax.tree.get(again.opt_state, "trace")["w"]
    assert int(again.step) == 3 and counts and set(counts) == {3}
    np.testing.assert_allclose(trace, 1 + 0.9 + 0.81, rtol=1e-6)


@pytest.mark.slow
def test_replicates_have_their_own_data_and_a_round_its_own_order():
    seen = []

    def train_step(state, batch):
        return state, {"batch": batch}

    def batch_fn(key, step):
        return jax.random.bits(jax.random.fold_in(key, step))

    state = TrainState.create(apply_fn=None, params={"w": jnp.ones((4, 4))}, tx=jp.masked(optax.sgd(0.1)))
    imp = jp.imp(train_step, batch_fn, steps=3, rounds=2)
    run = jax.jit(imp.run)
    for seed in range(3):
        _, history = run(jax.random.key(seed), state)
        seen += history.metrics["batch"].tolist()
    assert len(set(seen)) == 9
    _, again = run(jax.random.key(0), state)
    assert again.metrics["batch"].tolist() == seen[:3], "and it is seeded"


@pytest.mark.slow
def test_layers_with_one_weight_or_none_and_sparsity_zero_in_every_scope():
    scores = {"one": jnp.ones((1, 1)), "none": jnp.ones((3, 0)), "w": jnp.zeros((4, 4))}
    for scope in ("global", "local"):
        for sparsity in (0.0, 0.49, 0.51, 0.99):
            masks = jp.make_masks(scores, sparsity, scope=scope)
            total = sum(m.size for m in jax.tree.leaves(masks))
            each = round(sparsity * 16) + round(sparsity)
            assert pruned(masks) == (round(sparsity * total) if scope == "global" else each)
