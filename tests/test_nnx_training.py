"""An NNX model, with BatchNorm and Dropout, as the state and functions of experiments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up, self.norm = nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.drop, self.down = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.down(self.drop(nnx.relu(self.norm(self.up(x)))))


def loss_fn(model, x):
    return jnp.mean((model(x) - x[:, :2]) ** 2), {"mean": x.mean()}


def evaluate(model):
    return {"output": jnp.mean(model(jnp.ones((3, 4))))}


def batch_fn(key, step):
    return jax.random.normal(jax.random.fold_in(key, step), (16, 4))


def training_of(optimizer=None, seed=0):
    return jp.nnx_state(Net(nnx.Rngs(seed)), optimizer or optax.adam(0.01), loss_fn, evaluate)


def by_nnx(steps, seed=0):
    model = Net(nnx.Rngs(seed))
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
    for step in range(steps):
        grads = nnx.grad(lambda m, x: loss_fn(m, x)[0])(model, batch_fn(jax.random.key(1), step))
        optimizer.update(model, grads)
    return model, optimizer


def values(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]


def assert_same(one, other):
    for a, b in zip(values(one), values(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_steps_are_those_of_nnx_with_statistics_and_random_streams():
    model, optimizer = by_nnx(3)
    training = training_of()
    state, step = training.state, jax.jit(training.train_step)
    for number in range(3):
        state, metrics = step(state, batch_fn(jax.random.key(1), number))
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert_same(state.params, params)
    assert_same(state.rest, rest)
    assert_same(jax.tree.leaves(state.opt_state), jax.tree.leaves(optimizer.opt_state))
    assert int(state.step) == 3 and set(metrics) == {"loss", "mean"}


def test_an_nnx_optimizer_goes_on_where_it_is():
    model, optimizer = by_nnx(2)
    training = jp.nnx_state(model, optimizer, loss_fn)
    state, _ = training.train_step(training.state, batch_fn(jax.random.key(1), 2))
    assert_same(state.params, nnx.state(by_nnx(3)[0], nnx.Param))
    assert training.evaluate is None


def test_the_model_is_left_alone_until_it_is_updated():
    model = Net(nnx.Rngs(0))
    before = values(nnx.state(model))
    training = jp.nnx_state(model, optax.adam(0.01), loss_fn, evaluate)
    state, _ = jax.jit(training.train_step)(training.state, batch_fn(jax.random.key(1), 0))
    assert_same(before, values(nnx.state(model)))
    training.update(state)
    assert_same(state.params, nnx.state(model, nnx.Param))
    model.eval()
    np.testing.assert_allclose(model(jnp.ones((2, 4))), training_fn(model, state), rtol=1e-6)


def training_fn(model, state):
    return jp.nnx_state(model, optax.sgd(0.1), loss_fn).fn(state.params, jnp.ones((2, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imp", "gmp", "rigl"])
def test_recipes_run_over_seeds_side_by_side(name):
    training = training_of()
    recipe = getattr(jp.recipes, name)(0.75)
    made = recipe.experiment(training.train_step, batch_fn, steps=10, evaluate=training.evaluate)
    keys = jax.random.split(jax.random.key(0), 2)
    both, history = jax.jit(jax.vmap(lambda key: made.run(key, training.state)))(keys)
    assert history.kept[:, -1].tolist() == [12, 12]
    alone, _ = jax.jit(made.run)(keys[1], training.state)
    assert_same(alone.params, jax.tree.map(lambda x: x[1], both.params))


def test_the_function_of_the_model_is_what_surgery_takes():
    training = training_of()
    groups = jp.find_groups(training.fn, training.state.params, jnp.ones((1, 4)))
    assert [group.size for group in groups] == [8]


def test_what_is_no_model_or_no_optimizer_is_an_error():
    with pytest.raises(TypeError, match=r"`model` must be an nnx\.Module, got dict"):
        jp.nnx_state({}, optax.sgd(0.1), loss_fn)
    with pytest.raises(TypeError, match="`optimizer` must be an optax optimizer"):
        jp.nnx_state(Net(nnx.Rngs(0)), 0.1, loss_fn)
    with pytest.raises(ValueError, match="must have parameters"):
        jp.nnx_state(nnx.Dropout(0.5), optax.sgd(0.1), loss_fn)
