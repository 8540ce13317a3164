"""Inside `jax.shard_map`, with its default arguments, each shard gets the masks of its own part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec

import jaxprune as jp

W = jax.random.normal(jax.random.key(0), (2, 8))


def masks(w):
    return jp.make_masks({"w": jnp.abs(w)}, 0.5, minimum=1)["w"]


def pattern(w):
    return jp.make_masks({"w": jnp.abs(w)}, 0.5, structure=jp.NM(2, 4, axis=-1))["w"]


def in_loops(w):
    def body(carry, _):
        return carry, jax.vmap(lambda x: masks(x[None])[0])(carry)

    return jax.lax.scan(body, w, length=2)[1][1]


def gradual(w):
    tx = jp.gradual(optax.adam(0.1), jp.schedules.iterative(0.5, rounds=2))
    params, state = {"w": w}, tx.init({"w": w})
    for _ in range(2):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    return params["w"]


def rounds(w):
    def train_step(state, batch):
        grads = jax.tree.map(lambda p: p - batch, state.params)
        return state.apply_gradients(grads=grads), {"sum": jnp.sum(state.params["w"])}

    state = TrainState.create(apply_fn=None, params={"w": w}, tx=jp.masked(optax.sgd(0.1)))
    experiment = jp.imp(train_step, lambda key, step: 1.0, steps=2, rounds=1, rate=0.5, rewind=jp.Rewind(1))
    return experiment.run(jax.random.key(0), state)[0].params["w"]


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("fn", [masks, pattern, in_loops, gradual, rounds])
def test_each_shard_gets_what_it_would_get_alone(fn):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = PartitionSpec("x")
    found = jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec))(W)
    want = np.concatenate([np.asarray(jax.jit(fn)(W[i : i + 1])) for i in range(2)])
    assert ((want != 0).sum(1) == 4).all()
    np.testing.assert_allclose(found, want, rtol=1e-6)
