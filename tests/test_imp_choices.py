"""The choices of an experiment: checked however it is made, replaced, and a rate that is traced."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imp_task import batch_fn, experiment, state_of, train_step

import jaxprune as jp


def test_an_experiment_checks_itself():
    assert jp.imp is jp.IMP
    with pytest.raises(ValueError, match="`rate` must be in"):
        jp.IMP(train_step, batch_fn, steps=6, rounds=3, rate=1.5)
    with pytest.raises(ValueError, match="`rewind` must go back to a step of the round"):
        dataclasses.replace(experiment(rewind=jp.Rewind(3)), steps=3)
    assert dataclasses.replace(experiment(), rounds=np.int64(5)).rounds == 5
    with pytest.raises(TypeError, match="positional"):
        jp.IMP(train_step, batch_fn, 6, 3)


def test_a_sweep_over_rates_is_one_program():
    traces = []

    def kept(rate):
        traces.append(rate)
        _, history = experiment(rate=rate, steps=2).run(jax.random.key(0), state_of())
        return history.kept

    rates = (0.1, 0.2, 0.5)
    sweep = jax.jit(jax.vmap(kept))(jnp.array(rates))
    assert len(traces) == 1
    for row, rate in zip(sweep, rates, strict=True):
        assert [int(n) for n in row] == [90 - round((1 - (1 - rate) ** r) * 90) for r in range(4)]


def test_a_rate_that_is_an_array_is_one_share_for_all():
    _, of_array = jax.jit(experiment(rate=jnp.float32(0.2), steps=2).run)(jax.random.key(0), state_of())
    _, of_float = jax.jit(experiment(rate=0.2, steps=2).run)(jax.random.key(0), state_of())
    np.testing.assert_array_equal(of_array.kept, of_float.kept)
