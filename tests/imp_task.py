"""A small task for IMP: a model, its batches, a training step and an experiment."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import jaxprune as jp

X = jax.random.normal(jax.random.key(100), (64, 6))
Y = jnp.sin(X @ jax.random.normal(jax.random.key(101), (6, 3)))
SCHEDULE = optax.linear_schedule(0.02, 0.001, 10)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(10)(x)))


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((MLP().apply({"params": params}, x) - y) ** 2)


def train_step(state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
    return state.apply_gradients(grads=grads), {"loss": loss}


def batch_fn(key, step):
    rows = jax.random.randint(jax.random.fold_in(key, step), (16,), 0, len(X))
    return X[rows], Y[rows]


def evaluate(state):
    return {"loss": loss_fn(state.params, (X, Y))}


def params_of(seed=0):
    return MLP().init(jax.random.key(seed), X)["params"]


TX = jp.masked(optax.adam(SCHEDULE))


def state_of(seed=0, tx=TX):
    return TrainState.create(apply_fn=None, params=params_of(seed), tx=tx)


def experiment(**kwargs):
    kwargs = {"steps": 6, "rounds": 3, "evaluate": evaluate} | kwargs
    return jp.imp(train_step, batch_fn, **kwargs)
