"""A round that would train nothing, because its schedule has run out, is an error before it runs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from imp_task import batch_fn, experiment, state_of, train_step

import jaxprune as jp


def largest_moves(imp, state):
    """How far a kept weight moved in each sparse round."""
    carry, step, weights = imp.init(jax.random.key(0), state), jax.jit(imp.step), []
    for _ in range(imp.rounds + 1):
        carry, _ = step(carry)
        weights.append(carry.state.params["Dense_0"]["kernel"])
    return [
        float(jnp.abs(jnp.where(new != 0, new - old, 0)).max()) for old, new in itertools.pairwise(weights)
    ]


COSINE = optax.cosine_decay_schedule(0.02, 6)  # a round has 6 steps
RUN_OUT = {
    "adam": optax.adam(COSINE),
    "momentum": optax.sgd(optax.linear_schedule(0.02, 0.0, 3), momentum=0.9),
    "decay": optax.chain(
        optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale_by_schedule(COSINE)
    ),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=COSINE),
    "accumulated": optax.MultiSteps(
        optax.adam(optax.linear_schedule(0.02, 0.0, 3)), 2
    ).gradient_transformation(),
    "warmup": optax.adam(optax.warmup_cosine_decay_schedule(0.0, 0.02, 2, 6)),
    "only_finite": optax.apply_if_finite(optax.adam(COSINE), 3),
    "flat": optax.flatten(optax.adam(COSINE)),
    "table": optax.sgd(lambda count: jnp.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0])[count]),
    "biases_go_on": optax.partition(
        {"w": optax.adam(COSINE), "b": optax.sgd(0.1)},
        lambda params: jax.tree.map(lambda p: "w" if p.ndim > 1 else "b", params),
    ),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", RUN_OUT)
def test_a_round_that_would_train_nothing_is_an_error_before_it_runs(name):
    imp, state = experiment(rewind=jp.Finetune(), evaluate=None), state_of(tx=jp.masked(RUN_OUT[name]))
    message = r"`rewind` Finetune\(schedule='continue'\) leaves round 1 nothing to train: .* all 4 rounds \(24 steps\)"
    with pytest.raises(ValueError, match=message):
        imp.init(jax.random.key(0), state)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            jax.vmap(imp.run), *jax.tree.map(lambda x: jnp.asarray(x)[None], (jax.random.key(0), state))
        )


@pytest.mark.slow
def test_the_round_in_which_the_schedule_runs_out_is_named():
    state = state_of(tx=jp.masked(optax.adam(optax.linear_schedule(0.02, 0.0, 14))))
    with pytest.raises(ValueError, match="leaves round 3 nothing to train"):
        experiment(rewind=jp.Finetune()).init(jax.random.key(0), state)
    experiment(rewind=jp.Finetune(), rounds=2).init(jax.random.key(0), state)
    later = jax.tree.map(lambda x: x + 6 if jnp.ndim(x) == 0 and x.dtype == jnp.int32 else x, state.opt_state)
    with pytest.raises(ValueError, match="leaves round 2 nothing to train"):
        experiment(rewind=jp.Finetune()).init(jax.random.key(0), state.replace(opt_state=later))


def scanned(state, batch):
    return jax.lax.scan(lambda state, _: train_step(state, batch), state, None, length=2)


@pytest.mark.parametrize(
    ("step", "tx", "rewind"),
    [
        (jax.jit(train_step), jp.masked(optax.adam(COSINE)), jp.Finetune()),
        (jax.checkpoint(train_step), optax.adam(COSINE), jp.Finetune()),
        (scanned, jp.masked(optax.adam(COSINE)), jp.Finetune()),
        (train_step, jp.masked(optax.adam(optax.linear_schedule(0.1, 0.0, 4))), jp.Rewind(5)),
        (train_step, jp.masked(optax.adam(optax.linear_schedule(0.1, 0.0, 4))), jp.RewindLearningRate(4)),
    ],
)
def test_an_idle_round_is_found_in_any_form_of_the_step_and_after_any_rewind(step, tx, rewind):
    imp = jp.imp(step, batch_fn, steps=6, rounds=1, rewind=rewind)
    with pytest.raises(
        ValueError, match=rf"`rewind` {type(rewind).__name__}\(.* leaves round 1 nothing to train"
    ):
        imp.init(jax.random.key(0), state_of(tx=tx))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tx", "rewind"),
    [
        (optax.adam(COSINE), jp.Finetune("restart")),
        (optax.adam(optax.linear_schedule(0.02, 0.0, 24)), jp.Finetune()),
        (optax.adam(optax.cosine_decay_schedule(0.02, 6, alpha=0.1)), jp.Finetune()),
        (optax.adam(optax.linear_schedule(0.1, 0.0, 4)), jp.RewindLearningRate(3)),
    ],
)
def test_every_sparse_round_trains_where_the_schedule_lets_it(tx, rewind):
    assert min(largest_moves(experiment(rewind=rewind, evaluate=None), state_of(tx=jp.masked(tx)))) > 1e-5


@pytest.mark.slow
def test_a_training_without_any_learning_is_left_alone():
    moves = largest_moves(experiment(rewind=jp.Finetune()), state_of(tx=jp.masked(optax.sgd(0.0))))
    assert moves == [0, 0, 0]


@pytest.mark.slow
def test_finetuning_with_a_restart_is_learning_rate_rewinding_to_step_0():
    runs = [
        jax.jit(experiment(rewind=rewind).run)(jax.random.key(1), state_of())[0]
        for rewind in (jp.Finetune("restart"), jp.RewindLearningRate())
    ]
    jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)
    with pytest.raises(ValueError, match="`schedule` must be 'continue' or 'restart', got 'stop'"):
        jp.Finetune("stop")  # pyright: ignore[reportArgumentType]


@pytest.mark.slow
def test_a_control_from_a_trained_state_whose_schedule_has_run_out_is_an_error():
    imp, state = experiment(rewind=jp.Rewind()), state_of(tx=jp.masked(optax.adam(COSINE)))
    masks = jax.tree.map(lambda w: jnp.ones_like(w, bool), state.params)
    trained, _ = jax.jit(imp.train)(jax.random.key(0), state, masks)
    with pytest.raises(ValueError, match="`state` must be one before training"):
        imp.train(jax.random.key(0), trained, masks)
