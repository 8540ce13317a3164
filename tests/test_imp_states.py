"""The IMP loop takes any state: batch statistics, keys, dataclasses, bfloat16, shards, donated buffers."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import struct
from flax.training.train_state import TrainState
from imp_task import SCHEDULE, X, batch_fn, experiment, loss_fn, params_of, state_of, train_step

import jaxprune as jp


class BNNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.5)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.1, deterministic=False)(nn.relu(x)))


class FullState(struct.PyTreeNode):
    params: Any
    opt_state: Any
    batch_stats: Any
    dropout: jax.Array
    step: int


def full_state(tx):
    variables = jax.jit(BNNet().init)({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
    return FullState(
        variables["params"], tx.init(variables["params"]), variables["batch_stats"], jax.random.key(2), 0
    )


def full_train_step(state, batch, *, tx):
    key, use = jax.random.split(state.dropout)

    def loss_fn(params):
        out, updates = BNNet().apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch[0],
            mutable=["batch_stats"],
            rngs={"dropout": use},
        )
        return jnp.mean((out - batch[1]) ** 2), updates["batch_stats"]

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return FullState(params, opt_state, stats, key, state.step + 1), {"loss": loss, "step": state.step}


@pytest.mark.slow
@pytest.mark.parametrize("rewind", [jp.Rewind(2), jp.RewindLearningRate(2), jp.Finetune()])
def test_batch_statistics_and_dropout_keys_come_along(rewind):
    tx = jp.masked(optax.sgd(SCHEDULE, momentum=0.9))
    step = functools.partial(full_train_step, tx=tx)
    imp = jp.imp(step, batch_fn, steps=5, rounds=2, rewind=rewind)
    _, history = jax.jit(imp.run)(jax.random.key(0), full_state(tx))
    last = {"Rewind": [4, 4, 4], "RewindLearningRate": [4, 4, 4], "Finetune": [4, 9, 14]}[
        type(rewind).__name__
    ]
    assert history.metrics["step"].tolist() == last

    carry = imp.init(jax.random.key(0), full_state(tx))
    trained, _ = jax.jit(imp.step)(carry)
    restored = rewind.restore(jax.random.key(0), trained.state, trained.snapshot)
    if isinstance(rewind, jp.Rewind):
        batch_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)[0]
        want, compiled = carry.state, jax.jit(step)
        for t in range(2):
            want, _ = compiled(want, batch_fn(batch_key, t))
        unwrapped = [
            jax.tree.map(
                lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, s
            )
            for s in (restored, want)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *unwrapped)
    if isinstance(rewind, jp.RewindLearningRate):
        jax.tree.map(np.testing.assert_array_equal, restored.params, trained.state.params)
        jax.tree.map(np.testing.assert_array_equal, restored.batch_stats, trained.state.batch_stats)
        assert (
            int(restored.step) == 2
            and int(optax.tree.get_all_with_path(restored.opt_state, "count")[0][1]) == 2
        )


def test_an_optimizer_without_masks_is_held_by_the_loop():
    imp = experiment()
    state, history = jax.jit(imp.run)(jax.random.key(0), state_of(tx=optax.adamw(0.01, weight_decay=0.1)))
    zeros = sum(int((w == 0).sum()) for w in jax.tree.leaves(state.params) if w.ndim == 2)
    assert zeros == 90 - int(history.kept[-1])


@dataclasses.dataclass(frozen=True)
class Frozen:
    params: Any
    opt_state: Any


jax.tree_util.register_dataclass(Frozen)


class Tuple(NamedTuple):
    params: Any
    opt_state: Any


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Frozen, Tuple])
def test_any_state_with_params_and_opt_state(kind):
    tx = jp.masked(optax.sgd(0.1))

    def step(state, batch):
        grads = jax.grad(loss_fn)(state.params, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return kind(optax.apply_updates(state.params, updates), opt_state), ()

    imp = jp.imp(step, batch_fn, steps=2, rounds=2, rewind=jp.RewindLearningRate(1))
    _, history = jax.jit(imp.run)(jax.random.key(0), kind(params_of(), tx.init(params_of())))
    assert history.kept.tolist() == [90, 72, 58]


@pytest.mark.slow
def test_bfloat16_parameters():
    def cast(tree):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    tx = jp.masked(optax.adam(0.01))
    state = TrainState.create(apply_fn=None, params=cast(params_of()), tx=tx)
    imp = jp.imp(train_step, lambda k, t: cast(batch_fn(k, t)), steps=3, rounds=3)
    state, history = jax.jit(imp.run)(jax.random.key(0), state)
    assert state.params["Dense_0"]["kernel"].dtype == jnp.bfloat16
    assert history.kept.tolist() == [90, 72, 58, 46]


@pytest.mark.slow
def test_sharded_parameters_give_the_same_masks():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    state = state_of()
    params = dict(state.params)
    params["Dense_0"] = params["Dense_0"] | {"kernel": jax.device_put(params["Dense_0"]["kernel"], spec)}
    imp = experiment(keep_masks=True)
    _, alone = jax.jit(imp.run)(jax.random.key(0), state)
    _, history = jax.jit(imp.run)(jax.random.key(0), state.replace(params=params))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), alone.masks, history.masks)


@pytest.mark.slow
@pytest.mark.parametrize("rewind", [jp.Rewind(), jp.Rewind(2), jp.RewindLearningRate(1), jp.Finetune()])
def test_a_donated_carry_leaves_the_callers_arrays_alone(rewind):
    imp, key, state = (
        experiment(rewind=rewind, steps=3, rounds=1, evaluate=None),
        jax.random.key(4),
        state_of(),
    )
    want, _ = jax.jit(imp.run)(key, state)
    step = jax.jit(imp.step, donate_argnums=0)
    for init in (imp.init, jax.jit(imp.init)):
        carry = init(key, state)
        for _ in range(2):
            carry, _ = step(carry)
        jax.tree.map(np.testing.assert_array_equal, carry.state.params, want.params)
    assert not any(x.is_deleted() for x in jax.tree.leaves((key, state)) if isinstance(x, jax.Array))
