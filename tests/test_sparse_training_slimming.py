"""Regularised slimming: group lasso and penalties on scales."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sparse_steps import kept_places, row, steps_of

import jaxprune as jp
from jaxprune import sparse_training as st


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_group_lasso_of_strength_0_does_nothing_and_does_not_hide_nan():
    w = {"w": row(1.0, 0.0, jnp.nan)}
    tx = st.group_lasso(optax.set_to_zero(), 0.0, learning_rate=1.0)
    updates, state = tx.update(w, tx.init(w), w)
    np.testing.assert_array_equal(optax.apply_updates(w, updates)["w"], w["w"])
    tx = st.group_lasso(optax.set_to_zero(), 0.5, learning_rate=1.0)
    updates, state = tx.update(w, tx.init(w), w)
    np.testing.assert_array_equal(optax.apply_updates(w, updates)["w"], row(0.5, 0.0, jnp.nan))
    assert kept_places(state.masks) == [0, 2]


@pytest.mark.slow
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
