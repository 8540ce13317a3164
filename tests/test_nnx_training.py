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
        # Without a bias before the norm: its gradient is rounding, of which Adam makes whole steps.
        self.up, self.norm = nnx.Linear(4, 8, use_bias=False, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
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
    """A plain loop of NNX."""
    model = Net(nnx.Rngs(seed))
    model.train()
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda m: loss_fn(m, x)[0])(model))

    for number in range(steps):
        step(model, optimizer, batch_fn(jax.random.key(1), number))
    return model, optimizer


def values(tree):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def assert_same(one, other):
    for a, b in zip(values(one), values(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def assert_is(state, model, optimizer):
    """Weights, statistics, random streams and moments are those of the model and its optimizer."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert_same(state.params, params)
    assert_same(state.rest, rest)
    assert_same(jax.tree.leaves(state.opt_state), jax.tree.leaves(optimizer.opt_state))


def test_steps_are_those_of_nnx_with_statistics_and_random_streams():
    model, optimizer = by_nnx(3)
    training = training_of()
    state, step = training.state, jax.jit(training.train_step)
    for number in range(3):
        state, metrics = step(state, batch_fn(jax.random.key(1), number))
    assert_is(state, model, optimizer)
    assert int(state.step) == 3 and set(metrics) == {"loss", "mean"}


@pytest.mark.slow
def test_seeds_side_by_side_in_one_loop_are_plain_loops_of_nnx():
    tx, training = optax.adam(0.01), training_of()

    def train(key):
        state = jp.nnx_state(Net(nnx.Rngs(key)), tx, loss_fn).state

        def step(number, state):
            return training.train_step(state, batch_fn(jax.random.key(1), number))[0]

        return jax.lax.fori_loop(0, 3, step, state)

    states = jax.jit(jax.vmap(train))(jax.vmap(jax.random.key)(jnp.arange(2)))
    for seed in range(2):
        assert_is(jax.tree.map(lambda x, seed=seed: x[seed], states), *by_nnx(3, seed))


def test_an_nnx_optimizer_goes_on_where_it_is():
    model, optimizer = by_nnx(2)
    training = jp.nnx_state(model, optimizer, loss_fn)
    state, _ = training.train_step(training.state, batch_fn(jax.random.key(1), 2))
    assert_same(state.params, nnx.state(by_nnx(3)[0], nnx.Param))
    assert training.evaluate is None


class Sowing(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.LoRALinear(4, 8, lora_rank=2, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.up(x))
        self.hidden = nnx.Intermediate(hidden)  # as `sow` does
        return self.down(hidden)


def test_an_nnx_optimizer_of_some_variables_trains_these_and_keeps_its_count():
    model = Sowing(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, jp.masked(optax.sgd(0.5)), wrt=nnx.LoRAParam)

    def loss(model):
        return loss_fn(model, jnp.ones((1, 4)))[0]

    optimizer.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, nnx.LoRAParam))(model))
    training = jp.nnx_state(model, optimizer, loss_fn)
    state, _ = jax.jit(training.train_step)(training.state, jnp.ones((3, 4)))
    assert int(state.step) == 2
    before = nnx.state(nnx.clone(model), nnx.LoRAParam, nnx.Param)
    training.update(state)
    after = nnx.state(model, nnx.LoRAParam, nnx.Param)
    assert_same(before[1], after[1])
    assert sorted(x.shape for x in jax.tree.leaves(state.params)) == [(2, 8), (4, 2)]
    for old, new in zip(values(before[0]), values(after[0]), strict=True):
        assert (old != new).any()


def test_what_a_model_sows_is_dropped():
    training = jp.nnx_state(Sowing(nnx.Rngs(0)), optax.sgd(0.1), loss_fn)
    made = jp.recipes.imp(0.5, rounds=1).experiment(training.train_step, batch_fn, steps=2)
    state, _ = jax.jit(made.run)(jax.random.key(0), training.state)
    assert jax.tree.structure(state.rest) == jax.tree.structure(training.state.rest)


def test_an_optimizer_that_asks_for_the_loss_is_told_it():
    training = training_of(optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(accumulation_size=1)))
    state, metrics = training.train_step(training.state, batch_fn(jax.random.key(1), 0))
    assert float(state.opt_state[1].best_value) == float(metrics["loss"])


def test_the_model_is_left_alone_until_it_is_updated():
    model = Net(nnx.Rngs(0))
    before = values(nnx.state(model))
    training = jp.nnx_state(model, optax.adam(0.01), loss_fn, evaluate)
    state, _ = jax.jit(training.train_step)(training.state, batch_fn(jax.random.key(1), 0))
    assert_same(before, values(nnx.state(model)))
    training.update(state)
    _, params, rest = nnx.split(model, nnx.Param, ...)
    assert_same((state.params, state.rest), (params, rest))
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
    with pytest.raises(
        ValueError, match=r"must have parameters to train \(nnx\.Param\), got none in Dropout"
    ):
        jp.nnx_state(nnx.Dropout(0.5), optax.sgd(0.1), loss_fn)
    other = nnx.Optimizer(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), optax.adam(0.1), wrt=nnx.Param)
    with pytest.raises(ValueError, match="`optimizer` must be one of `model`"):
        jp.nnx_state(Net(nnx.Rngs(0)), other, loss_fn)
