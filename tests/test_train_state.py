"""The state for parameters of any kind, beside flax's."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state as flax

import jaxprune as jp

X = jax.random.normal(jax.random.key(0), (8, 4))


def test_steps_are_those_of_flax():
    params = {"w": jax.random.normal(jax.random.key(1), (4, 2)), "b": jnp.ones(2)}
    tx = optax.adamw(0.1)
    own = jp.TrainState.create(params=params, tx=tx)
    other = flax.TrainState.create(apply_fn=None, params=params, tx=tx)
    for _ in range(3):
        grads = jax.grad(lambda p: jnp.mean((X @ p["w"] + p["b"]) ** 2))(own.params)
        own, other = (state.apply_gradients(grads=grads) for state in (own, other))
    for name in ("params", "opt_state", "step"):
        for a, b in zip(*(jax.tree.leaves(getattr(state, name)) for state in (own, other)), strict=True):
            np.testing.assert_array_equal(a, b)


class WithKey(jp.TrainState):
    key: Any


def test_an_equinox_module_trains_in_rounds_and_the_rest_goes_along():
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(2))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    state = WithKey.create(
        params=params, tx=optax.sgd(0.1), rest={"seen": jnp.zeros(())}, key=jax.random.key(3)
    )

    def train_step(state, x):
        noise = jax.random.normal(jax.random.fold_in(state.key, state.step), x.shape)
        grads = eqx.filter_grad(lambda p: jnp.mean(jax.vmap(eqx.combine(p, static))(x + noise) ** 2))(
            state.params
        )
        return state.apply_gradients(grads=grads, rest={"seen": state.rest["seen"] + len(x)}), {}

    made = jp.recipes.gmp(0.5, updates=2).experiment(train_step, lambda key, step: X, steps=4)
    state, history = jax.jit(made.run)(jax.random.key(0), state)
    assert history.kept.tolist() == [24] and float(state.rest["seen"]) == 32 and int(state.step) == 4
    assert jax.vmap(eqx.combine(state.params, static))(X).shape == (8, 2)
    assert jp.count_zeros(state.params).zeros == 24
