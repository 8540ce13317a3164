"""An experiment whose sparsities, or numbers of steps, are given round by round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from imp_task import evaluate, experiment, params_of, state_of, train_step

import jaxprune as jp

COUNT = sum(w.size for w in jax.tree.leaves(params_of()) if w.ndim == 2)


def test_the_history_tells_exactly_the_sparsities_that_were_given():
    sparsities = (0.1, 0.2, 0.3, 0.3, 0.9)
    made = experiment(rounds=None, sparsities=sparsities, steps=2)
    assert made.rounds == 5
    _, history = jax.jit(made.run)(jax.random.key(0), state_of())
    assert history.kept.tolist() == [COUNT - round(s * COUNT) for s in (0.0, *sparsities)]
    np.testing.assert_allclose(history.sparsity, [round(s * COUNT) / COUNT for s in (0.0, *sparsities)])


def test_a_rate_and_its_sparsities_are_one_experiment():
    rate = jax.jit(experiment(rate=0.5).run)(jax.random.key(0), state_of())
    given = jax.jit(experiment(sparsities=(0.5, 0.75, 0.875)).run)(jax.random.key(0), state_of())
    for one, other in zip(jax.tree.leaves(rate), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_schedule_of_the_rounds_gives_the_sparsities():
    made = experiment(sparsities=jp.schedules.linear(0.6, begin=0, end=3), steps=2)
    _, history = jax.jit(made.run)(jax.random.key(0), state_of())
    assert history.kept.tolist() == [COUNT - round(s * COUNT) for s in (0.0, 0.2, 0.4, 0.6)]


def test_sparsities_may_differ_by_leaf():
    of_round = [jax.tree.map(lambda w, share=share: w.ndim * share, params_of()) for share in (0.1, 0.2)]
    of_round[1]["Dense_1"]["kernel"] = 0.5
    made = experiment(rounds=2, sparsities=of_round, steps=2, keep_masks=True)
    _, history = jax.jit(made.run)(jax.random.key(0), state_of())
    pruned = [int((~history.masks[f"Dense_{i}"]["kernel"][2]).sum()) for i in range(2)]
    assert pruned == [round(0.4 * 30), round(0.5 * 60)]


@pytest.mark.slow
def test_a_sweep_over_traced_sparsities_is_one_program():
    traces = []

    def kept(sparsities):
        traces.append(sparsities)
        _, history = experiment(rounds=None, sparsities=sparsities, steps=2).run(
            jax.random.key(0), state_of()
        )
        return history.kept

    run = jax.jit(kept)
    for sparsities in ([0.25, 0.5], [0.1, 0.9]):
        assert run(jnp.asarray(sparsities)).tolist()[1:] == [COUNT - round(s * COUNT) for s in sparsities]
    assert len(traces) == 1


@pytest.mark.slow
def test_trainings_of_different_lengths_are_those_of_separate_experiments():
    def counted(state, batch):
        state, metrics = train_step(state, batch)
        return state, {**metrics, "step": state.step}

    def run(steps, **more):
        made = jp.imp(
            counted, experiment().batch_fn, steps=steps, sparsities=(0.5,), evaluate=evaluate, **more
        )
        return jax.jit(made.run)(jax.random.key(0), state_of(tx=jp.masked(optax.adam(0.01))))

    _, history = run((3, 5), rewind=jp.Rewind(2), every=2)
    assert history.metrics["step"].tolist() == [3, 5]
    curve = history.curve["loss"]
    assert (
        np.isfinite(curve[0, 0])
        and np.isnan(curve[0, 1])
        and np.isnan(curve[1, 0])
        and np.isfinite(curve[1, 1])
    )
    same, _ = run(5, rewind=jp.Rewind(2))
    longer, _ = run((5, 5), rewind=jp.Rewind(2))
    for one, other in zip(jax.tree.leaves(same), jax.tree.leaves(longer), strict=True):
        np.testing.assert_array_equal(one, other)
    _, rows = run((3, 3), rewind=jp.Rewind(2))
    np.testing.assert_array_equal(rows.evaluation["loss"][0], history.evaluation["loss"][0])


def test_a_training_of_its_own_length_takes_that_many_steps_and_control_runs_as_many_as_the_last():
    made = experiment(sparsities=(0.5,), rounds=None, steps=(2, 4))
    state, _ = jax.jit(made.run)(jax.random.key(0), state_of())
    assert int(state.step) == 4
    masks = jp.get_masks(state.opt_state)
    trained, _ = jax.jit(made.train)(jax.random.key(0), state_of(), masks)
    assert int(trained.step) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"sparsities": (0.5, 0.4, 0.6)}, "`sparsities` must not fall"),
        ({"sparsities": (0.5, 1.0, 1.0)}, r"`sparsities\[1\]` must be in \[0, 1\)"),
        ({"sparsities": (0.5,)}, "one entry for each of the 3 rounds, got 1"),
        ({"sparsities": (0.1, 0.2, 0.3), "rate": 0.2}, "either `rate` or `sparsities`"),
        ({"sparsities": jp.schedules.linear(0.9, begin=0, end=3), "rounds": None}, "`rounds` must be given"),
        ({"sparsities": (0.1, 0.2, 0.6), "structure": jp.NM(2, 4)}, r"`sparsities\[2\]` must not pass 0.5"),
        ({"steps": (1, 2)}, "one for each of the 4 trainings"),
        ({"steps": (1, 2, 0, 3)}, r"`steps\[2\]` must be a whole number"),
        ({"steps": (4, 2, 4, 4), "rewind": jp.Rewind(2)}, "`rewind` must go back to a step of the round"),
    ],
)
def test_sparsities_and_steps_that_make_no_experiment_are_errors(more, message):
    with pytest.raises(ValueError, match=message):
        experiment(**more)


@pytest.mark.parametrize("sparsities", [0.5, "half", ()])
def test_what_is_no_sequence_is_a_type_error(sparsities):
    with pytest.raises(TypeError, match="`sparsities` must be a sequence"):
        experiment(sparsities=sparsities, rounds=None)
    with pytest.raises(TypeError, match="`rounds` must be given"):
        experiment(rounds=None)


def test_an_experiment_is_given_its_sparsities_anew():
    other = dataclasses.replace(experiment(), sparsities=(0.1, 0.2, 0.3))
    assert other.sparsities == (0.1, 0.2, 0.3)
