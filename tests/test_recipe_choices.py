"""Recipes as combinations of four objects: new ones run, and what has no meaning together says so."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxprune as jp

STEPS = 24
jitted = {"xla_backend_optimization_level": 0}  # each program runs once


def fresh(key):
    keys = jax.random.split(key)
    return {
        "up": {"kernel": jax.random.normal(keys[0], (8, 24)) / 3, "bias": jnp.zeros(24)},
        "down": {"kernel": jax.random.normal(keys[1], (24, 4)) / 5},
    }


def fn(params, x):
    return jnp.tanh(x @ params["up"]["kernel"] + params["up"]["bias"]) @ params["down"]["kernel"]


def loss_fn(params, batch):
    return jnp.mean((fn(params, batch) - jnp.sin(3 * batch[:, :4])) ** 2)


def batch_fn(key, step):
    return jax.random.normal(jax.random.fold_in(key, step), (32, 8))


def train_step(state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
    return state.apply_gradients(grads=grads), {"loss": loss, "step": state.step}


def evaluate(state):
    return {"loss": loss_fn(state.params, batch_fn(jax.random.key(9), 0))}


def state_of(tx=None, seed=0):
    return TrainState.create(apply_fn=None, params=fresh(jax.random.key(seed)), tx=tx or optax.adam(1e-2))


GROUPS = jp.find_groups(fn, fresh(jax.random.key(0)), jnp.ones((1, 8)))
OUTPUTS = ("down/kernel",)  # its channels are those of the network


def hidden(params):
    return jp.prunable(params, exclude=OUTPUTS)


NEW = {
    "RigL in 4x4 blocks": (dataclasses.replace(jp.recipes.rigl(0.5, updates=4), structure=jp.Block((4, 4))), {}),
    "SET of channels": (
        dataclasses.replace(jp.recipes.set(0.5, updates=4), structure=jp.Channels()),
        {"where": hidden},
    ),
    "IMP with SNIP scores": (
        dataclasses.replace(jp.recipes.imp(0.75, rounds=2), scoring=jp.Scoring(jp.scores.snip)),
        {},
    ),
    "recursive L1 channels, rewound": (
        jp.Recipe(0.5, jp.Channels(), jp.Scoring(jp.scores.l1_norm, "local"), jp.Recursive(2, "equal"), jp.Rewind(3)),
        {"where": hidden},
    ),
    "one shot, drawn anew": (jp.Recipe(0.75, initialization=jp.Reinitialize(fresh)), {}),
    "one shot late, learning rate rewound": (
        jp.Recipe(0.75, scheduling=jp.OneShot(0.75), initialization=jp.RewindLearningRate()),
        {},
    ),
    "gradual random blocks": (
        jp.Recipe(0.5, jp.Block((2, 2)), jp.Scoring(jp.scores.random), jp.Gradual(jp.schedules.linear, updates=3)),
        {},
    ),
    "gradual Taylor scores, normalized": (
        jp.Recipe(0.75, scoring=jp.Scoring(jp.scores.taylor, normalize="mean"), scheduling=jp.Gradual(updates=3)),
        {},
    ),
    "N:M at initialization": (jp.Recipe(0.5, jp.NM(2, 4), jp.Scoring(jp.scores.snip), jp.BeforeTraining()), {}),
    "alternating channels": (
        jp.Recipe(0.5, jp.Channels(), scheduling=jp.Alternating(phases=2)),
        {"where": hidden},
    ),
    "recursive coupled units": (
        jp.Recipe(0.5, jp.Coupled(GROUPS), scheduling=jp.Recursive(sparsities=(0.25, 0.5)), initialization=jp.Rewind()),
        {},
    ),
    "SynFlow in three rounds by layer": (
        jp.Recipe(0.75, scoring=jp.Scoring(jp.scores.synflow, "local"), scheduling=jp.BeforeTraining(rounds=3)),
        {},
    ),
}  # fmt: skip


def run(recipe, key=0, steps=STEPS, state=None, **more):
    made = recipe.experiment(
        train_step,
        batch_fn,
        steps=steps,
        evaluate=evaluate,
        loss_fn=loss_fn,
        fn=fn,
        inputs=(jnp.ones((1, 8)),),
        **more,
    )
    start = state_of() if state is None else state
    return jax.jit(made.run, compiler_options=jitted)(jax.random.key(key), start)


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("name", NEW)
def test_new_combinations_run_as_one_program_and_end_at_their_exact_sparsity(name):
    recipe, more = NEW[name]
    state, history = run(recipe, **more)
    pruned = jax.tree.map(lambda w: np.asarray(w) == 0, state.params)
    for w, mask in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(jp.get_masks(state.opt_state)), strict=True
    ):
        assert not np.any(np.where(mask, 0, w))
    if isinstance(recipe.structure, jp.Unstructured | jp.NM):
        kernels = [pruned["up"]["kernel"], pruned["down"]["kernel"]]
        assert sum(int(k.sum()) for k in kernels) == round(recipe.sparsity * 288)
    elif isinstance(recipe.structure, jp.Coupled):
        assert int(pruned["up"]["bias"].sum()) == int(pruned["up"]["kernel"].all(0).sum()) == 12
    elif isinstance(recipe.structure, jp.Channels):
        assert int(pruned["up"]["kernel"].all(0).sum()) == 12
    assert history.kept.shape == (len(recipe.trainings(STEPS)),)
    assert sum(recipe.trainings(STEPS)) == STEPS
    assert np.all(np.isfinite(history.evaluation["loss"]))


def test_a_named_recipe_made_by_hand_is_the_same_value():
    assert jp.recipes.gmp(0.9) == jp.Recipe(0.9, scheduling=jp.Gradual(), name="GMP")
    assert hash(jp.recipes.gmp(0.9)) == hash(jp.recipes.gmp(0.9))
    assert dataclasses.replace(jp.recipes.gmp(0.9), name="x") != jp.recipes.gmp(0.9)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gmp", "rigl", "snip", "ac_dc", "one_shot"])
def test_an_experiment_of_one_training_is_a_loop_with_its_optimizer(name):
    recipe = getattr(jp.recipes, name)(0.75)
    key = jax.random.key(3)
    batch_key, recipe_key, _ = jax.random.split(jax.random.fold_in(key, 0), 3)

    def by_hand(state):
        batches = [batch_fn(recipe_key, 0)]
        tx = recipe.transform(
            optax.adam(1e-2), state.params, steps=STEPS, key=recipe_key, loss_fn=loss_fn, batches=batches
        )
        opt_state = tx.init(state.params)
        params = jp.apply_masks(state.params, jp.get_masks(opt_state))

        def step(t, carry):
            params, opt_state = carry
            grads = jax.grad(loss_fn)(params, batch_fn(batch_key, t))
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return jax.lax.fori_loop(0, STEPS, step, (params, opt_state))

    params, opt_state = jax.jit(by_hand)(state_of())
    made = recipe.experiment(train_step, batch_fn, steps=STEPS, loss_fn=loss_fn)
    state, history = jax.jit(made.run)(key, state_of())
    masks = jax.tree.leaves(jp.get_masks(state.opt_state))
    for one, other in zip(masks, jax.tree.leaves(jp.get_masks(opt_state)), strict=True):
        np.testing.assert_array_equal(np.broadcast_to(one, other.shape), other)
    for one, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert history.kept.tolist() == [72]
    # Training goes on under the masks.
    after = state.apply_gradients(grads=jax.grad(loss_fn)(state.params, batch_fn(key, 0)))
    for w, mask in zip(
        jax.tree.leaves(after.params), jax.tree.leaves(jp.get_masks(after.opt_state)), strict=True
    ):
        assert not np.any(np.where(mask, 0, w))


@pytest.mark.slow
def test_seeds_side_by_side_get_what_each_gets_alone():
    recipe = jp.recipes.rigl(0.75)
    made = recipe.experiment(train_step, batch_fn, steps=STEPS)
    keys = jax.random.split(jax.random.key(0), 2)
    states = jax.vmap(lambda key: state_of().replace(params=fresh(key)))(keys)
    both, history = jax.jit(jax.vmap(made.run))(keys, states)
    assert history.kept.tolist() == [[72], [72]]
    for i, key in enumerate(keys):
        alone, _ = jax.jit(made.run)(key, state_of().replace(params=fresh(key)))
        for one, of_all in zip(jax.tree.leaves(alone.params), jax.tree.leaves(both.params), strict=True):
            np.testing.assert_allclose(one, of_all[i], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_sweep_over_sparsities_is_one_program():
    traces = []
    schedulings = (
        jp.Recursive(2), jp.BeforeTraining(), jp.Moving(), jp.OneShot(), jp.Gradual(updates=2), jp.Alternating(phases=2)
    )  # fmt: skip
    for scheduling in schedulings:

        def kept(sparsity, scheduling=scheduling):
            traces.append(sparsity)
            recipe = jp.Recipe(sparsity, scoring=jp.Scoring(scope="local"), scheduling=scheduling)
            return (
                recipe.experiment(train_step, batch_fn, steps=6)
                .run(jax.random.key(0), state_of())[1]
                .kept[-1]
            )

        compiled = jax.jit(kept)
        assert [int(compiled(s)) for s in (0.25, 0.75)] == [216, 72], scheduling
    assert len(traces) == len(schedulings)

    def exponential(sparsity):
        recipe = jp.Recipe(sparsity, scheduling=jp.Gradual(jp.schedules.exponential))
        return recipe.transform(optax.sgd(0.1), fresh(jax.random.key(0)), steps=9).init(
            fresh(jax.random.key(0))
        )

    with pytest.raises(ValueError, match="must be a known number with the schedule 'exponential'"):
        jax.jit(exponential)(0.5)


def test_a_sparsity_in_an_array_is_a_number():
    assert jp.Recipe(jnp.float32(0.25)) == jp.Recipe(0.25) and jp.Recipe(0.25).sparsity == 0.25


class Own(NamedTuple):
    params: Any
    opt_state: Any


def test_a_state_of_ones_own_takes_the_optimizer_of_transform():
    recipe = jp.recipes.gmp(0.75, updates=4)
    params = fresh(jax.random.key(0))
    tx = recipe.transform(optax.sgd(0.1), params, steps=STEPS)

    def own_step(state, batch):
        updates, opt_state = tx.update(jax.grad(loss_fn)(state.params, batch), state.opt_state, state.params)
        return Own(optax.apply_updates(state.params, updates), opt_state), {}

    made = recipe.experiment(own_step, batch_fn, steps=STEPS)
    state, history = jax.jit(made.run, compiler_options=jitted)(
        jax.random.key(0), Own(params, tx.init(params))
    )
    assert history.kept.tolist() == [72] and isinstance(state, Own)
    with pytest.raises(
        ValueError, match=r"optimizer as `.tx`.*got Own without it: GMP prunes while it trains"
    ):
        made.run(jax.random.key(0), Own(params, optax.sgd(0.1).init(params)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gmp", "imp", "snip"])
def test_plain_and_masked_optimizers_are_the_same_experiment(name):
    recipe = getattr(jp.recipes, name)(0.75)
    runs = [run(recipe, state=state_of(tx)) for tx in (optax.adam(1e-2), jp.masked(optax.adam(1e-2)))]
    for one, other in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(jp.has_masks(state.opt_state) for state, _ in runs)


@pytest.mark.parametrize("name", ["gmp", "rigl"])
def test_masks_inside_an_optimizer_are_refused_where_the_recipe_makes_its_own(name):
    made = getattr(jp.recipes, name)(0.75).experiment(train_step, batch_fn, steps=4)
    inside = optax.chain(optax.clip_by_global_norm(1.0), jp.masked(optax.sgd(0.1)))
    with pytest.raises(ValueError, match=r"has jp.masked inside its optimizer.* put it outermost"):
        jax.eval_shape(made.run, jax.random.key(0), state_of(inside))
    outside = jp.masked(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)))
    assert jax.eval_shape(made.run, jax.random.key(0), state_of(outside))[1].kept.shape == (1,)


def test_pruning_before_training_takes_any_state():
    made = jp.recipes.snip(0.75).experiment(train_step, batch_fn, steps=2, loss_fn=loss_fn)
    kept = [
        jax.jit(made.run, compiler_options=jitted)(jax.random.key(0), state_of(tx))[1].kept.tolist()
        for tx in (optax.sgd(0.1), jp.masked(optax.sgd(0.1)))
    ]
    assert kept == [[72], [72]]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"scheduling": jp.Gradual(), "initialization": jp.Rewind()}, "Rewind.* no meaning with Gradual.*no training"),
        ({"scheduling": jp.BeforeTraining(), "initialization": jp.Rewind()}, "prunes before the first step"),
        ({"scheduling": jp.Moving()}, "no meaning with Scoring.*scope='local' or an `allocation`"),
        (
            {"sparsity": 0.5, "structure": jp.NM(2, 4), "scoring": jp.Scoring(scope="local")}
            | {"scheduling": jp.Moving()},
            "Moving.* no meaning with NM",
        ),
        ({"structure": jp.Layers(), "scheduling": jp.Moving()}, r"no meaning with Layers\(\): masks move within"),
        ({"structure": jp.NM(2, 4)}, "`sparsity` must be 0.5 for NM"),
        ({"scoring": jp.Scoring(minimum=2), "scheduling": jp.Alternating()}, "takes no `minimum`"),
        ({"scoring": jp.Scoring(group_lasso=0.1), "scheduling": jp.Recursive()}, "Add the penalty to the loss"),
        ({"scheduling": jp.Recursive(sparsities=(0.2, 0.5))}, "the last of the `sparsities` must be the recipe's"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_together_says_why(choices, message):
    with pytest.raises(ValueError, match=message):
        jp.Recipe(**{"sparsity": 0.9} | choices)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"scoring": jp.scores.snip}, "`scoring` must be jp.Scoring"),
        ({"scheduling": jp.Gradual}, "`scheduling` must be jp.OneShot"),
        ({"initialization": "rewind"}, "`initialization` must be jp.Finetune"),
        ({"structure": jp.Channels}, "`structure` must be a structure"),
    ],
)
def test_what_is_no_choice_is_a_type_error(choices, message):
    with pytest.raises(TypeError, match=message):
        jp.Recipe(0.9, **choices)


@pytest.mark.parametrize(
    "schedule", [3, jp.schedules.one_shot, jp.schedules.linear(0.5, 0, 3), lambda final: None]
)
def test_what_makes_no_schedule_of_a_span_is_a_type_error(schedule):
    with pytest.raises(TypeError, match=r"`schedule` must be a function \(final, begin, end, every\)"):
        jp.Gradual(schedule)


def test_what_an_experiment_needs_is_named():
    with pytest.raises(ValueError, match="`loss_fn` must be given to experiment"):
        jp.recipes.snip(0.9).experiment(train_step, batch_fn, steps=3)
    with pytest.raises(ValueError, match=r"IMP has several trainings .* call experiment"):
        jp.recipes.imp(0.9).transform(optax.sgd(0.1), fresh(jax.random.key(0)), steps=STEPS)
    with pytest.raises(ValueError, match=r"`params` must be given to experiment.*allocation of IMP"):
        jp.recipes.imp(0.9, allocation="erk").experiment(train_step, batch_fn, steps=STEPS)
    with pytest.raises(ValueError, match="must be at least 5, one for each training"):
        jp.recipes.imp(0.9).experiment(train_step, batch_fn, steps=4)


@pytest.mark.parametrize("scheduling", [jp.Recursive(1), jp.Gradual(), jp.BeforeTraining()])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"every": 2}, "`every` asks for curves of `evaluate`, which is not given"),
        ({"every": 99, "evaluate": evaluate}, "`every` must be at most `steps`"),
        ({"every": 0, "evaluate": evaluate}, "`every` must be a whole number of at least 1, got 0"),
        ({"every": 1.5, "evaluate": evaluate}, "`every` must be a whole number"),
    ],
)
def test_curves_that_are_none_are_errors_in_every_scheduling(scheduling, more, message):
    with pytest.raises(ValueError, match=message):
        jp.Recipe(0.5, scheduling=scheduling).experiment(train_step, batch_fn, steps=8, **more)


def noisy(loss_fn, params, batch, *, key):
    """SNIP with noise: a score of the loss that draws."""
    noise = jax.random.uniform(key, params["up"]["kernel"].shape)
    return {"up": {"kernel": noise, "bias": params["up"]["bias"]}, "down": params["down"]}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    "scheduling", [jp.BeforeTraining(), jp.BeforeTraining(2), jp.Gradual(), jp.Recursive(1)]
)
def test_a_score_of_the_loss_may_draw_random_numbers(scheduling):
    recipe = jp.Recipe(0.5, scoring=jp.Scoring(noisy, "local"), scheduling=scheduling)
    assert recipe.needs() == ("loss_fn", "batches", "key")
    masks = [run(recipe, key)[0].params["up"]["kernel"] != 0 for key in (0, 1)]
    assert [int(mask.sum()) for mask in masks] == [96, 96] and not np.array_equal(*masks)


@pytest.mark.parametrize(
    "scheduling", [jp.BeforeTraining(), jp.BeforeTraining(2), jp.Moving(), jp.Gradual(), jp.Recursive(1)]
)
@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (
            lambda params: params["up"],
            ValueError,
            "`score` must return a tree like the parameters, got 2 leaves for 3",
        ),
        (jp.scores.wanda, TypeError, r"`score` must take \(params\) or .* Bind its other arguments"),
    ],
)
def test_a_score_of_another_tree_or_of_statistics_is_named(scheduling, score, error, message):
    recipe = jp.Recipe(0.5, scoring=jp.Scoring(score, "local"), scheduling=scheduling)
    made = recipe.experiment(train_step, batch_fn, steps=STEPS)
    with pytest.raises(error, match=message):
        jax.eval_shape(made.run, jax.random.key(0), state_of())


def test_a_minimum_of_the_mean_needs_a_known_sparsity():
    def kept(sparsity):
        recipe = jp.Recipe(sparsity, scoring=jp.Scoring(minimum=jp.recipes.OfMeanKept(0.5)))
        return recipe.experiment(train_step, batch_fn, steps=4).run(jax.random.key(0), state_of())[1].kept

    with pytest.raises(ValueError, match=r"`sparsity` must be a known number with OfMeanKept\(share=0.5\)"):
        jax.eval_shape(kept, 0.5)


def test_the_last_of_given_sparsities_is_that_of_the_recipe_up_to_rounding():
    def made(sparsity, sparsities, rounds=4):
        return jp.Recipe(sparsity, scheduling=jp.Recursive(rounds, sparsities=sparsities)).scheduling

    assert made(0.3, (0.1, 0.1 + 0.2)).after(0.3) == (0.1, 0.1 + 0.2)
    assert made(0.3, np.array([0.1, 0.3], np.float32)).rounds == 2
    assert made(0.3, jp.schedules.linear(0.3, begin=0, end=3), rounds=3).sparsities == (0.1, 0.2, 0.3)
    for wrong in (
        lambda sparsity: made(sparsity, (0.1, 0.3)),
        lambda sparsity: made(0.3, (0.1, sparsity)),
        lambda _: made(0.3, (0.1, 0.301)),
    ):
        with pytest.raises(ValueError, match="the last of the `sparsities` must be the recipe's sparsity"):
            jax.eval_shape(lambda sparsity, wrong=wrong: wrong(sparsity) and 0, 0.3)


def test_the_spacing_of_rounds():
    assert jp.Recursive(3, "equal").after(0.75) == pytest.approx((0.25, 0.5, 0.75))
    assert jp.Recursive(2).after(0.75) == pytest.approx((0.5, 0.75))
