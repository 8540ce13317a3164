"""Recipes that remove units and layers: equal to the rounds by hand, resumable, and clear about what has no meaning."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.shrinking import Stage

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(100), (32, 4))
Y = jnp.sin(X[:, :2])
INPUTS = (X[:1],)


def mlp(params, x):
    return jnp.tanh(jnp.tanh(x @ params["up"] + params["bias"]) @ params["middle"]) @ params["down"]


def residual(params, x):
    x = x @ params["into"]
    for name in ("a", "b", "c"):
        x = x + jnp.tanh(x @ params[name]["up"]) @ params[name]["down"]
    return x @ params["out"]


def drawn(shapes, key):
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef, [jax.random.normal(k, s) / 2 for k, s in zip(keys, leaves, strict=True)]
    )


def mlp_params(key=None):
    key = jax.random.key(0) if key is None else key
    return drawn({"up": (4, 10), "bias": (10,), "middle": (10, 6), "down": (6, 2)}, key)


def residual_params():
    layers = {name: {"up": (6, 5), "down": (5, 6)} for name in "abc"}
    return drawn({"into": (4, 6), "out": (6, 2)} | layers, jax.random.key(1))


TX = optax.adam(optax.linear_schedule(0.02, 0.001, 40))


def state_of(params):
    return TrainState.create(apply_fn=None, params=params, tx=TX)


def batch_fn(key, step):
    rows = jax.random.randint(jax.random.fold_in(key, step), (8,), 0, len(X))
    return X[rows], Y[rows]


def loss_of(fn):
    return lambda params, batch: jnp.mean((fn(params, batch[0]) - batch[1]) ** 2)


def maker(fn):
    def make_train_step(compact):
        loss_fn = loss_of(compact(fn))

        def train_step(state, batch):
            loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
            return state.apply_gradients(grads=grads), {"loss": loss}

        return train_step

    return make_train_step


def evaluate(fn, params):
    return {"loss": loss_of(fn)(params, (X, Y))}


def experiment(recipe, fn=mlp, steps=12, **more):
    options = {"evaluate": evaluate, "fn": fn, "inputs": INPUTS, "loss_fn": loss_of(fn)} | more
    return recipe.experiment(maker(fn), batch_fn, steps=steps, **options)


def rounds(planner, fn=mlp, params=None, **options):
    options = {"evaluate": evaluate} | options
    return jp.shrink_in_rounds(
        fn,
        state_of(mlp_params() if params is None else params),
        *INPUTS,
        key=KEY,
        make_train_step=maker(fn),
        batch_fn=batch_fn,
        planner=planner,
        **options,
    )


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def same(run, shrunk, params):
    """Whether a recipe's result is that of shrink_in_rounds, bit for bit."""
    state, history = run
    equal(state, shrunk.state)
    equal(history._replace(plan=None)._asdict(), shrunk.history._asdict())
    equal(history.plan.masks(params), shrunk.plan.masks(params))


UNITS = jp.RemoveUnits(budget="units")
LOCAL = jp.Scoring(scope="local")

# recipe, steps in all, and what shrink_in_rounds is called with
CASES = {
    "equal steps, rewound": (
        jp.Recipe(0.6, UNITS, LOCAL, jp.Recursive(2, "equal"), jp.Rewind(2)),
        {"planner": UNITS, "steps": 4, "sparsities": (0.3, 0.6), "rewind": jp.Rewind(2)},
    ),
    "given, learning rate rewound": (
        jp.Recipe(
            0.5,
            jp.RemoveUnits(round_to=2),
            jp.Scoring(jp.surgery.fpgm_scores),
            jp.Recursive(sparsities=(0.2, 0.5)),
            initialization=jp.RewindLearningRate(1),
        ),
        {
            "planner": jp.RemoveUnits(jp.surgery.fpgm_scores, scope="global", normalize=None, round_to=2),
            "steps": 4,
            "sparsities": (0.2, 0.5),
            "rewind": jp.RewindLearningRate(1),
        },
    ),
    "one shot": (
        jp.Recipe(0.5, UNITS, jp.Scoring(minimum=3, normalize="max"), jp.OneShot(0.75)),
        {
            "planner": jp.RemoveUnits(scope="global", minimum=3, normalize="max", budget="units"),
            "steps": (9, 3),
            "sparsities": (0.5,),
        },
    ),
    "before training": (
        jp.Recipe(0.5, UNITS, LOCAL, jp.BeforeTraining()),
        {"planner": UNITS, "steps": (0, 12), "sparsities": (0.5,)},
    ),
    "one shot, drawn anew": (
        jp.Recipe(0.5, UNITS, LOCAL, jp.OneShot(), jp.Reinitialize(mlp_params)),
        {"planner": UNITS, "steps": 6, "sparsities": (0.5,), "rewind": jp.Reinitialize(mlp_params)},
    ),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", CASES)
def test_a_recipe_of_units_is_shrink_in_rounds(name):
    recipe, options = CASES[name]
    made = experiment(recipe)
    run = made.run(KEY, state_of(mlp_params()))
    same(run, rounds(**options), mlp_params())
    _, history = run
    assert made.rounds == len(history.steps) - 1 and made.curve_steps == ()
    assert recipe.trainings(12) == tuple(np.broadcast_to(options["steps"], len(history.steps)))
    assert sum(recipe.trainings(12)) == 12
    assert jp.plots.history(history).axes


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    ("recipe", "options", "gone"),
    [
        (
            jp.Recipe(2 / 3, jp.RemoveLayers(budget="branches"), scheduling=jp.Recursive(2, "equal")),
            {"planner": jp.RemoveLayers(budget="branches"), "sparsities": (1 / 3, 2 / 3), "steps": 4},
            2,
        ),
        (
            jp.Recipe(
                0.25,
                jp.RemoveLayers(exclude=["b"]),
                jp.Scoring(lambda branches, params: {"a": 2.0, "b": 1.0, "c": 3.0}),
                jp.OneShot(),
                jp.Rewind(1),
            ),
            {
                "planner": jp.RemoveLayers(lambda b, p: {"a": 2.0, "b": 1.0, "c": 3.0}, exclude=("b",)),
                "sparsities": (0.25,),
                "steps": 6,
                "rewind": jp.Rewind(1),
            },
            1,
        ),
    ],
)
def test_a_recipe_of_layers_is_shrink_in_rounds(recipe, options, gone):
    run = experiment(recipe, residual).run(KEY, state_of(residual_params()))
    same(run, rounds(fn=residual, params=residual_params(), **options), residual_params())
    gone = set("abc") - set(run[0].params)
    assert (len(gone) == round(recipe.sparsity * 3) and "b" not in gone - {"a", "c"}) or recipe.sparsity > 0.5


def test_the_small_function_is_the_masked_one_and_sizes_are_exact():
    recipe = jp.Recipe(0.5, UNITS, LOCAL, jp.Recursive(2, "equal"))
    state, history = experiment(recipe).run(KEY, state_of(mlp_params()))
    assert jax.tree.map(jnp.shape, state.params) == {
        "up": (4, 5),
        "bias": (5,),
        "middle": (5, 3),
        "down": (3, 2),
    }
    np.testing.assert_allclose(history.sparsity, [0, 0.25, 0.5])
    assert history.parameters.tolist() == [122, 4 * 8 + 8 + 8 * 4 + 8, 4 * 5 + 5 + 15 + 6]
    params, plan = mlp_params(), history.plan
    masked = jp.apply_masks(params, plan.masks(params))
    np.testing.assert_allclose(plan.compact(mlp)(plan.shrink(params), X), mlp(masked, X), atol=1e-5)
    np.testing.assert_allclose(
        history.evaluation["loss"][-1], loss_of(plan.compact(mlp))(state.params, (X, Y)), rtol=1e-5
    )
    assert "parameters" in str(history)


# What scores are given.


def stage_of(fn=mlp, params=None, sparsity=0.3, plan=None):
    full = mlp_params() if params is None else params
    if plan is None:
        return Stage(fn, full, INPUTS, sparsity, 1, KEY, fn, full)
    return Stage(plan.compact(fn), plan.shrink(full), INPUTS, sparsity, 2, KEY, fn, full, plan.compact)


def removed(scoring, stage, structure=UNITS, **more):
    """Names of groups -> which units the planner of a recipe removes."""
    made = experiment(jp.Recipe(0.5, structure, scoring), stage.full_fn, **more)
    return np.flatnonzero(~np.ravel(made.planner(stage).mask("bias")))


def lowest(scores, count):
    return np.sort(np.argsort(scores, kind="stable")[:count])


def units_of(tree):
    """Sums over the slices of each of the ten hidden units."""
    return np.asarray(tree["up"].sum(0) + tree["bias"] + tree["middle"].sum(1))


@pytest.mark.slow
def test_scores_are_called_by_the_names_of_their_arguments():
    stage, batches = stage_of(), [batch_fn(KEY, 7)]
    grads = jax.grad(loss_of(mlp))(stage.params, batches[0])
    taylor = units_of(jax.tree.map(lambda g, w: g * w, grads, stage.params)) ** 2
    got = removed(jp.Scoring(jp.surgery.taylor_scores, "local"), stage, batches=batches)
    np.testing.assert_array_equal(got, lowest(taylor, 3))

    drawn_batch = batch_fn(KEY, 0)  # of the key of the round
    grads = jax.grad(loss_of(mlp))(stage.params, drawn_batch)
    taylor = units_of(jax.tree.map(lambda g, w: g * w, grads, stage.params)) ** 2
    got = removed(jp.Scoring(jp.surgery.taylor_scores, "local"), stage)
    np.testing.assert_array_equal(got, lowest(taylor, 3))

    activations = np.abs(np.tanh(np.asarray(X @ stage.params["up"] + stage.params["bias"]))).mean(0)
    got = removed(jp.Scoring(jp.surgery.activation_scores, "local"), stage, batches=[X])
    np.testing.assert_array_equal(got, lowest(activations, 3))

    def by_key(units, weights, rng, batches=None, scale=2.0):
        assert weights is stage.params and batches[0][0].shape == (8, 4) and scale == 2.0
        return jp.surgery.unit_scores(units, weights, jp.scores.random(weights, rng))

    got = removed(jp.Scoring(by_key, "local"), stage)
    np.testing.assert_array_equal(got, lowest(units_of(jp.scores.random(stage.params, KEY)), 3))

    def by_position(units, weights, /):
        return jp.surgery.l2_scores(units, weights)

    def bound(groups, params, /, batches=[X]):  # noqa: B006
        assert batches[0] is X
        return jp.surgery.l2_scores(groups, params)

    squares = units_of(jax.tree.map(jnp.square, stage.params))
    for score in (jp.scores.magnitude, by_position, bound):
        np.testing.assert_array_equal(removed(jp.Scoring(score, "local"), stage), lowest(squares, 3))


def test_scores_of_weights_are_summed_over_units():
    stage = stage_of()
    want = lowest(units_of(jax.tree.map(jnp.abs, stage.params)), 3)
    for score in (lambda params: jax.tree.map(jnp.abs, params), jp.scores.l1_norm):
        np.testing.assert_array_equal(removed(jp.Scoring(score, "local"), stage), want)
    want = lowest(units_of(jp.scores.random(stage.params, KEY)), 3)
    np.testing.assert_array_equal(removed(jp.Scoring(jp.scores.random, "local"), stage), want)
    snip = jp.scores.snip(loss_of(mlp), stage.params, batch_fn(KEY, 5))
    got = removed(jp.Scoring(jp.scores.snip, "local"), stage, batches=[batch_fn(KEY, 5)])
    np.testing.assert_array_equal(got, lowest(units_of(snip), 3))


@pytest.mark.slow
def test_the_loss_is_at_the_present_size():
    groups = jp.find_groups(mlp, mlp_params(), *INPUTS)
    keep = np.arange(10) % 5 != 0
    plan = jp.surgery.plan_units(groups, {"bias[0]": keep})
    stage = stage_of(plan=plan)
    taylor = jp.surgery.taylor_scores(
        jp.find_groups(stage.fn, stage.params, *INPUTS),
        loss_of(stage.fn),
        stage.params,
        [batch_fn(KEY, 0)],
    )
    # Three of ten in all, two of which are gone already.
    got = removed(jp.Scoring(jp.surgery.taylor_scores, "local"), stage)
    np.testing.assert_array_equal(got, lowest(taylor["bias[0]"], 1))
    snip = units_of(jp.scores.snip(loss_of(stage.fn), stage.params, batch_fn(KEY, 0)))
    np.testing.assert_array_equal(removed(jp.Scoring(jp.scores.snip, "local"), stage), lowest(snip, 1))


@pytest.mark.slow
def test_losses_of_layers_are_those_of_what_is_left():
    """The greedy choice round by round, against the losses of all smaller networks."""
    recipe = jp.Recipe(
        2 / 3,
        jp.RemoveLayers(budget="branches"),
        jp.Scoring(jp.surgery.loss_increase),
        jp.Recursive(2, "equal"),
    )
    tiny = optax.sgd(1e-30)
    state = TrainState.create(apply_fn=None, params=residual_params(), tx=tiny)
    batches = [(X, Y)]
    got, _ = experiment(recipe, residual, batches=batches).run(KEY, state)

    def loss(names):
        x = X @ state.params["into"]
        for name in names:
            x = x + jnp.tanh(x @ state.params[name]["up"]) @ state.params[name]["down"]
        return float(jnp.mean((x @ state.params["out"] - Y) ** 2))

    left = "abc"
    for _ in range(2):
        left = min((left.replace(name, "") for name in left), key=loss)
    assert set(got.params) == {"into", "out", left}


def test_layers_are_ranked_by_the_key_of_the_round():
    stage = stage_of(residual, residual_params(), 1 / 3)
    scoring = jp.Scoring(jp.surgery.random_branches)
    made = experiment(jp.Recipe(0.5, jp.RemoveLayers(budget="branches"), scoring), residual)
    branches = jp.find_branches(residual, residual_params(), *INPUTS)
    drawn_scores = jp.surgery.random_branches(branches, KEY)
    assert made.planner(stage).removed == (min(drawn_scores, key=drawn_scores.get),)


def test_a_round_that_removes_nothing_asks_for_no_scores():
    def score(units, params):
        raise AssertionError

    for budget, sparsity in (("params", 0.25), ("branches", 0.4)):  # a layer has 60 of 216 weights
        made = experiment(jp.Recipe(0.5, jp.RemoveLayers(budget=budget), jp.Scoring(score)), residual)
        branches = jp.find_branches(residual, residual_params(), *INPUTS)
        gone = jp.plan_layers(branches, residual_params(), number=1)
        stage = stage_of(residual, residual_params(), sparsity, gone)
        assert made.planner(stage).removed == ()
    groups = jp.find_groups(mlp, mlp_params(), *INPUTS)
    gone = jp.plan_removal(groups, mlp_params(), 0.5, budget="units")
    made = experiment(jp.Recipe(0.5, UNITS, jp.Scoring(score)))
    plan = made.planner(stage_of(sparsity=0.4, plan=gone))
    assert plan.small_shapes == plan.shapes


# Resuming.


class Stop(Exception):
    pass


@pytest.mark.slow
def test_a_recipe_that_was_stopped_continues_with_the_same_bits(tmp_path):
    recipe = jp.Recipe(0.6, UNITS, LOCAL, jp.Recursive(2, "equal"), jp.Rewind(2))
    start = state_of(mlp_params())
    whole = experiment(recipe).run(KEY, start)
    count = iter(range(9))

    def stopping(fn, params):
        if next(count) == 2:
            raise Stop
        return evaluate(fn, params)

    with pytest.raises(Stop):
        experiment(recipe, evaluate=stopping, folder=tmp_path / "run").run(KEY, start)
    for _ in range(2):  # the second has nothing left to do
        state, history = experiment(recipe, folder=tmp_path / "run").run(KEY, start)
        equal(state, whole[0])
        equal(history._replace(plan=None)._asdict(), whole[1]._replace(plan=None)._asdict())
        equal(history.plan.masks(start.params), whole[1].plan.masks(start.params))
    other = dataclasses.replace(recipe, scoring=jp.Scoring(jp.surgery.fpgm_scores, "local"))
    with pytest.raises(ValueError, match=r"its `planner` was RemoveUnits.*l2_scores.* not .*fpgm_scores"):
        experiment(other, folder=tmp_path / "run").run(KEY, start)


# States with statistics.


class Net(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(nn.Dense(8)(x))
        return nn.Dense(2)(nn.relu(x))


class Trained(NamedTuple):
    params: Any
    opt_state: Any
    batch_stats: Any


@pytest.mark.slow
def test_statistics_are_shrunk_and_losses_take_what_the_function_takes():
    variables = Net().init(jax.random.key(0), X)
    tx = optax.adam(0.01)

    def make_train_step(compact):
        small = compact(functools.partial(Net(train=True).apply, mutable=["batch_stats"]))

        def train_step(state, batch):
            def loss_fn(params):
                out, new = small({"params": params, "batch_stats": state.batch_stats}, batch[0])
                return jnp.mean((out - batch[1]) ** 2), new["batch_stats"]

            (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            return Trained(optax.apply_updates(state.params, updates), opt_state, stats), {"loss": loss}

        return train_step

    state = Trained(variables["params"], tx.init(variables["params"]), variables["batch_stats"])
    recipe = jp.Recipe(
        0.5, UNITS, jp.Scoring(jp.surgery.taylor_scores, "local"), jp.Recursive(2, "equal"), jp.Rewind(1)
    )
    made = recipe.experiment(
        make_train_step,
        batch_fn,
        steps=9,
        fn=Net().apply,
        inputs=INPUTS,
        loss_fn=loss_of(Net().apply),
        evaluate=evaluate,
        variables=lambda state: {"params": state.params, "batch_stats": state.batch_stats},
    )
    state, history = made.run(KEY, state)
    assert state.batch_stats["BatchNorm_0"]["mean"].shape == state.params["Dense_0"]["bias"].shape == (4,)
    assert state.opt_state[0].mu["Dense_1"]["kernel"].shape == (4, 2)
    assert np.isfinite(history.evaluation["loss"]).all()


# Printing.


def test_a_recipe_prints_what_runs():
    recipe = jp.Recipe(0.5, jp.RemoveUnits(round_to=8), scheduling=jp.Recursive(3, "equal"), name="mine")
    assert str(recipe).splitlines() == [
        "mine, sparsity 0.5",
        "  structure       RemoveUnits(budget='params', round_to=8)",
        "  scoring         Scoring(l2_scores, scope='global', minimum=1, normalize='mean')",
        "  scheduling      Recursive(rounds=3, spacing='equal')",
        "  initialization  Finetune(schedule='continue')",
    ]
    layers = dataclasses.replace(recipe, structure=jp.RemoveLayers(level="blocks", exclude="head"))
    assert str(layers).splitlines()[1:3] == [
        "  structure       RemoveLayers(budget='params', exclude='head', level='blocks')",
        "  scoring         Scoring(branch_norms, scope='global')",
    ]
    rms = functools.partial(jp.surgery.activation_scores, statistic="rms")
    scored = dataclasses.replace(recipe, scoring=jp.Scoring(rms, "local", minimum=2, normalize="max"))
    said = "Scoring(activation_scores(statistic='rms'), scope='local', minimum=2, normalize='max')"
    assert str(scored).splitlines()[2] == f"  scoring         {said}"
    # Masks again: the scoring is what it was.
    assert "Scoring(magnitude, scope='global')" in str(dataclasses.replace(recipe, structure=jp.Channels()))
    assert hash(recipe) == hash(dataclasses.replace(recipe)) and recipe == dataclasses.replace(recipe)
    assert hash(jp.RemoveLayers(exclude=["a", "b"])) == hash(jp.RemoveLayers(exclude=("a", "b")))


# What has no meaning.


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"scheduling": jp.Gradual()}, "Gradual.* no meaning with RemoveUnits.*within one training: sizes change only"),
        ({"scheduling": jp.Moving()}, "Moving.* no meaning with RemoveUnits.*: sizes change only"),
        ({"scheduling": jp.Alternating()}, "Alternating.* no meaning with RemoveUnits.*: sizes change only"),
        ({"scheduling": jp.BeforeTraining(rounds=3)}, "removed at once before the training"),
        ({"scheduling": jp.BeforeTraining(), "initialization": jp.Rewind()}, "no training to go back from"),
        ({"scoring": jp.Scoring(allocation="erk")}, "`allocation` has no meaning with RemoveUnits"),
        ({"scoring": jp.Scoring(group_lasso=0.1)}, "Add the penalty to the loss"),
        ({"scoring": jp.Scoring(normalize="l2")}, "normalize='l2' has no meaning.*'mean' or the 'max'"),
        ({"scoring": jp.Scoring(minimum=0.5)}, "minimum=0.5 has no meaning.* whole number of units"),
        ({"scoring": jp.Scoring(minimum=jp.recipes.OfMeanKept(0.5))}, "OfMeanKept.* has no meaning"),
        ({"scoring": jp.Scoring(jp.scores.l2_norm)}, "l2_norm has no meaning with RemoveUnits.*jp.surgery.l2_scores"),
        ({"scoring": jp.Scoring(jp.scores.fpgm)}, "fpgm has no meaning with RemoveUnits"),
        ({"scoring": jp.Scoring(jp.surgery.block_influence)}, "block_influence has no meaning with RemoveUnits"),
        ({"structure": jp.RemoveUnits(jp.surgery.fpgm_scores)}, "`score` of RemoveUnits.*pass it to jp.Scoring"),
        ({"structure": jp.RemoveUnits(scope="global")}, "`scope` of RemoveUnits.*pass it to jp.Scoring"),
        ({"structure": jp.RemoveUnits(minimum=4)}, "`minimum` of RemoveUnits.*pass it to jp.Scoring"),
        ({"structure": jp.RemoveUnits(normalize=None)}, "`normalize` of RemoveUnits.*pass it to jp.Scoring"),
        ({"structure": jp.RemoveLayers(lambda b, p: {})}, "`score` of RemoveLayers.*pass it to jp.Scoring"),
        ({"structure": jp.RemoveLayers(), "scoring": LOCAL}, "`scope` must be 'global' for RemoveLayers"),
        ({"structure": jp.RemoveLayers(), "scoring": jp.Scoring(minimum=1)}, "minimum=1 has no meaning"),
        ({"structure": jp.RemoveLayers(), "scoring": jp.Scoring(normalize="mean")}, "normalize='mean' has no meaning"),
        (
            {"structure": jp.RemoveLayers(), "scoring": jp.Scoring(jp.scores.snip)},
            "snip has no meaning with RemoveLayers.*branch_norms or block_influence",
        ),
        (
            {"structure": jp.RemoveLayers(), "scoring": jp.Scoring(jp.surgery.l2_scores)},
            "l2_scores has no meaning with RemoveLayers",
        ),
        (
            {"structure": jp.Channels(), "scoring": jp.Scoring(jp.surgery.l2_scores)},
            "l2_scores has no meaning with Channels.*scores of weights",
        ),
        (
            {"structure": jp.Unstructured(), "scoring": jp.Scoring(jp.surgery.branch_norms)},
            "branch_norms has no meaning with Unstructured",
        ),
        ({"scheduling": jp.Recursive(sparsities=(0.2, 0.6))}, "must be the recipe's sparsity 0.5"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_together_says_why(choices, message):
    made = {"sparsity": 0.5, "structure": jp.RemoveUnits()} | choices
    with pytest.raises(ValueError, match=message) as error:
        jp.Recipe(**made)
    assert "\n" not in str(error.value)


def test_what_is_no_structure_or_no_score_is_a_type_error():
    with pytest.raises(TypeError, match="`structure` must be a structure"):
        jp.Recipe(0.5, jp.RemoveUnits)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"`score` must take \(groups, params\).*Bind its other arguments"):
        jp.Recipe(0.5, jp.RemoveUnits(), jp.Scoring(jp.surgery.obs_scores))


def test_sizes_need_a_known_sparsity_and_a_loop_on_the_host():
    with pytest.raises(ValueError, match="`sparsity` must be a known number with RemoveUnits"):
        jax.jit(lambda sparsity: jp.Recipe(sparsity, jp.RemoveUnits()).sparsity)(0.5)
    made = experiment(jp.Recipe(0.5, jp.RemoveUnits()))
    with pytest.raises(ValueError, match="is not for jit"):
        jax.jit(made.run)(KEY, state_of(mlp_params()))


def plain_step(state, batch):
    return state, {}


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"train_step": plain_step}, TypeError, "`train_step` must be a function compact -> train_step"),
        ({"train_step": 3}, TypeError, "`train_step` must be a function"),
        ({"fn": None}, ValueError, "`fn` must be given to experiment"),
        ({"inputs": None}, ValueError, "`inputs` must be given to experiment"),
        ({"inputs": X}, TypeError, "`inputs` must be a tuple"),
        ({"evaluate": lambda state: {}}, TypeError, r"`evaluate` must be a function \(fn, params\)"),
        ({"where": {"up": True}}, ValueError, "`where` has no meaning with RemoveUnits.*`exclude`"),
        ({"every": 2}, ValueError, "`every` has no meaning with RemoveUnits"),
        ({"keep_masks": True}, ValueError, "`keep_masks` has no meaning with RemoveUnits.*`history.plan`"),
        ({"steps": 2}, ValueError, "must be at least 3, one for each training"),
        ({"steps": 6}, ValueError, r"`rewind` must go back to a step of the round, got Rewind\(step=2\) with steps=2"),
        ({"score": jp.surgery.taylor_scores}, ValueError, "`loss_fn` must be given to experiment"),
        ({"score": jp.scores.snip}, ValueError, "`loss_fn` must be given to experiment"),
        ({"score": jp.surgery.activation_scores}, ValueError, "`batches` must be given to experiment"),
    ],
)  # fmt: skip
def test_what_an_experiment_of_removal_needs_is_named(more, error, message):
    options = {"train_step": maker(mlp), "steps": 9, "fn": mlp, "inputs": INPUTS} | more
    scoring = jp.Scoring(options.pop("score", jp.surgery.l2_scores))
    recipe = jp.Recipe(0.5, jp.RemoveUnits(), scoring, jp.Recursive(2), jp.Rewind(2))
    with pytest.raises(error, match=message):
        recipe.experiment(options.pop("train_step"), batch_fn, **options)


@pytest.mark.parametrize(
    "more", [{"variables": lambda state: state.params}, {"folder": "runs"}, {"progress": True}]
)
def test_masks_take_no_arguments_of_removal(more):
    for scheduling in (jp.Recursive(2), jp.BeforeTraining()):
        with pytest.raises(
            ValueError, match=f"`{next(iter(more))}` has no meaning with Unstructured.*for jp.Remove"
        ):
            jp.Recipe(0.5, scheduling=scheduling).experiment(plain_step, batch_fn, steps=9, **more)


def test_no_optimizer_makes_arrays_smaller():
    with pytest.raises(ValueError, match=r"recipe makes arrays smaller \(RemoveUnits.*call experiment\(\)"):
        jp.Recipe(0.5, jp.RemoveUnits()).transform(optax.sgd(0.1), mlp_params(), steps=9)


def test_a_share_that_cant_be_removed_is_told_before_training():
    made = experiment(jp.Recipe(0.97, jp.RemoveUnits(exclude="down.*")))
    with pytest.raises(ValueError, match="can't be reached"):
        made.run(KEY, state_of(mlp_params()))


def test_nothing_is_removed_at_sparsity_0():
    recipe = jp.Recipe(0.0, jp.RemoveUnits(), scheduling=jp.Recursive(1))
    state, history = experiment(recipe, steps=4).run(KEY, state_of(mlp_params()))
    assert history.parameters.tolist() == [122, 122] and history.steps.tolist() == [2, 2]
    equal(jax.tree.map(jnp.shape, state.params), jax.tree.map(jnp.shape, mlp_params()))
    equal(history.plan.shrink(mlp_params()), mlp_params())
