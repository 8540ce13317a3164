"""Removal in rounds: against loops by hand, resumed, and for every kind of model and state."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.shrinking.arguments import sparsities_of

X = jax.random.normal(jax.random.key(100), (64, 4))
Y = jnp.sin(X @ jax.random.normal(jax.random.key(101), (4, 3)))
KEY = jax.random.key(1)


class State(NamedTuple):
    params: Any
    opt_state: Any


def mlp(params, x):
    x = jnp.tanh(x @ params["up"] + params["bias"])
    return jnp.tanh(x @ params["middle"]) @ params["down"]


def params_of(seed=0, width=10):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"up": (4, width), "middle": (width, 6), "down": (6, 3)}
    params = {name: jax.random.normal(k, s) / 2 for k, (name, s) in zip(keys, shapes.items(), strict=True)}
    return {**params, "bias": jnp.linspace(-1, 1, width)}


TX = optax.adam(optax.linear_schedule(0.02, 0.001, 30))


def state_of(tx=TX, params=None):
    params = params_of() if params is None else params
    return TrainState.create(apply_fn=None, params=params, tx=tx)


def batch_fn(key, step):
    rows = jax.random.randint(jax.random.fold_in(key, step), (16,), 0, len(X))
    return X[rows], Y[rows]


def stepper(fn, traces=None):
    """The training step of `fn(params, x)`."""

    def train_step(state, batch):
        if traces is not None:
            traces.append(jax.tree.map(jnp.shape, state.params))
        x, y = batch
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((fn(p, x) - y) ** 2))(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss}

    return train_step


def evaluate(fn, params):
    return {"loss": jnp.mean((fn(params, X) - Y) ** 2)}


def shrunk(state=None, fn=mlp, **options):
    options = {
        "key": KEY,
        "make_train_step": lambda compact: stepper(compact(fn)),
        "batch_fn": batch_fn,
        "steps": 4,
        "evaluate": evaluate,
        "planner": jp.RemoveUnits(budget="units"),
    } | options
    if "sparsities" not in options:
        options = {"rounds": 2, "rate": 0.3} | options
    return jp.shrink_in_rounds(fn, state_of() if state is None else state, X[:1], **options)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def trained(fn, state, number, steps=4, start=0):
    step = jax.jit(stepper(fn))
    key = jax.random.split(jax.random.fold_in(KEY, number), 3)[0]
    for t in range(start, steps):
        state, metrics = step(state, batch_fn(key, t))
    return state, metrics


def by_hand(rounds, rate=0.3, rewind=None, at=0):
    """The same as a Python loop over find_groups, plan_units and shrink, with scores in numpy."""
    state, plan, fn, losses = state_of(), None, mlp, []
    snapshot = state if at == 0 else trained(mlp, state, 0, at)[0]
    state, metrics = trained(mlp, state, 0)
    losses.append(metrics["loss"])
    for r in range(1, rounds + 1):
        p = jax.tree.map(np.asarray, state.params)
        scores = {
            "bias[0]": np.sqrt((p["up"] ** 2).sum(0) + p["bias"] ** 2 + (p["middle"] ** 2).sum(1)),
            "down[0]": np.sqrt((p["middle"] ** 2).sum(0) + (p["down"] ** 2).sum(1)),
        }
        groups = jp.find_groups(fn, state.params, X[:1])
        assert set(groups.keys()) == set(scores)
        keep = {}
        for (name, score), n in zip(scores.items(), (10, 6), strict=True):
            left = n - round((1 - (1 - rate) ** r) * n)
            keep[name] = np.isin(np.arange(len(score)), np.argsort(-score)[:left])
        step = jp.surgery.plan_units(groups, keep)
        plan = step if plan is None else plan.then(step)
        fn = plan.compact(mlp)
        if rewind is None:
            state = state.replace(
                params=step.shrink(state.params), opt_state=step.shrink_opt_state(state.opt_state)
            )
        else:
            small = snapshot.replace(
                params=plan.shrink(snapshot.params), opt_state=plan.shrink_opt_state(snapshot.opt_state)
            )
            state = rewind(state, small, step)
        state, metrics = trained(fn, state, r, start=at)
        losses.append(metrics["loss"])
    return state, plan, np.stack(losses)


REWINDS = {
    "finetune": (jp.Finetune(), None, 0),
    "rewind_0": (jp.Rewind(), lambda state, small, step: small, 0),
    "rewind_2": (jp.Rewind(step=2), lambda state, small, step: small, 2),
    "learning_rate_1": (
        jp.RewindLearningRate(step=1),
        lambda state, small, step: small.replace(params=step.shrink(state.params)),
        1,
    ),
    "restart": (
        jp.Finetune(schedule="restart"),
        lambda state, small, step: small.replace(params=step.shrink(state.params)),
        0,
    ),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", REWINDS)
@pytest.mark.parametrize("rounds", [1, 3])
def test_rounds_equal_a_loop_by_hand(rounds, name):
    rewind, restore, at = REWINDS[name]
    got = shrunk(rounds=rounds, rewind=rewind)
    state, plan, losses = by_hand(rounds, rewind=restore, at=at)
    equal(got.state, state)
    assert got.plan.small_shapes == plan.small_shapes
    equal(got.plan.masks(params_of()), plan.masks(params_of()))
    np.testing.assert_array_equal(got.history.metrics["loss"], losses)


def test_each_group_loses_a_share_of_its_original_units():
    traces = []
    state = state_of().replace(step=jnp.zeros([], jnp.int32))  # a Python number is another type at first
    got = shrunk(state, rounds=4, rate=0.2, make_train_step=lambda compact: stepper(compact(mlp), traces))
    sizes = [(shapes["bias"][0], shapes["down"][0]) for shapes in traces]
    want = [(10 - round((1 - 0.8**r) * 10), 6 - round((1 - 0.8**r) * 6)) for r in range(5)]
    assert list(dict.fromkeys(sizes)) == want == sizes  # one trace a size
    assert got.history.parameters.tolist() == [4 * n + n + n * m + m * 3 for n, m in want]
    assert got.history.flops.tolist() == [2 * (4 * n + n * m + m * 3) for n, m in want]
    assert got.history.steps.tolist() == [4] * 5
    np.testing.assert_allclose(got.history.sparsity, [1 - 0.8**r for r in range(5)])
    small = got.plan.compact(mlp)(got.state.params, X)
    np.testing.assert_allclose(got.history.evaluation["loss"][-1], jnp.mean((small - Y) ** 2), rtol=1e-6)


# Kinds of states.


class Net(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        for width in (8, 6):
            x = nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(nn.Dense(width)(x))
            x = nn.relu(x)
        return nn.Dense(3)(x)


class BatchNormState(TrainState):
    batch_stats: Any
    average: Any


def linen_variables(state):
    return {"params": state.params, "batch_stats": state.batch_stats}


NET_TX = optax.adam(0.01)


def linen_state():
    variables = Net().init(jax.random.key(0), X)
    return BatchNormState.create(
        apply_fn=None,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        average=variables["params"],
        tx=NET_TX,
    )


def train_net(variables, x):
    return Net(train=True).apply(variables, x, mutable=["batch_stats"])


def linen_step(fn):
    def train_step(state, batch):
        x, y = batch

        def loss_fn(params):
            out, new = fn({"params": params, "batch_stats": state.batch_stats}, x)
            return jnp.mean((out - y) ** 2), new["batch_stats"]

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        state = state.apply_gradients(grads=grads, batch_stats=stats)
        average = optax.incremental_update(state.params, state.average, 0.1)
        return state.replace(average=average), {"loss": loss}

    return train_step


def linen_run(**options):
    options = {
        "make_train_step": lambda compact: linen_step(compact(train_net)),
        "variables": linen_variables,
    } | options
    return shrunk(linen_state(), Net().apply, **options)


def statistics(variables, outputs):
    return variables["batch_stats"], outputs[1]["batch_stats"]


def test_statistics_moments_and_averages_of_linen_are_those_of_the_kept_units():
    got = linen_run(rounds=1, steps=[4, 3])
    state, step = linen_state(), jax.jit(linen_step(train_net))
    keys = [jax.random.split(jax.random.fold_in(KEY, r), 3)[0] for r in (0, 1)]
    for t in range(4):
        state, _ = step(state, batch_fn(keys[0], t))
    plan = got.plan
    kept = {
        path: np.asarray(mask).ravel()
        for path in ("Dense_0/bias", "Dense_1/bias")
        for mask in [plan.mask(path)]
    }
    assert [mask.sum() for mask in kept.values()] == [6, 4]

    def cut(params):
        a, b = kept.values()
        return {
            "Dense_0": {"kernel": params["Dense_0"]["kernel"][:, a], "bias": params["Dense_0"]["bias"][a]},
            "Dense_1": {"kernel": params["Dense_1"]["kernel"][a][:, b], "bias": params["Dense_1"]["bias"][b]},
            "Dense_2": {"kernel": params["Dense_2"]["kernel"][b], "bias": params["Dense_2"]["bias"]},
            "BatchNorm_0": jax.tree.map(lambda x: x[a], params["BatchNorm_0"]),
            "BatchNorm_1": jax.tree.map(lambda x: x[b], params["BatchNorm_1"]),
        }

    a, b = kept.values()
    stats = {
        "BatchNorm_0": jax.tree.map(lambda x: x[a], state.batch_stats["BatchNorm_0"]),
        "BatchNorm_1": jax.tree.map(lambda x: x[b], state.batch_stats["BatchNorm_1"]),
    }
    adam, *rest = state.opt_state
    adam = adam._replace(mu=cut(adam.mu), nu=cut(adam.nu))
    state = state.replace(
        params=cut(state.params), average=cut(state.average), batch_stats=stats, opt_state=(adam, *rest)
    )
    step = jax.jit(linen_step(jp.Plan(plan.shapes, plan.kept, statistics).compact(train_net)))
    for t in range(3):
        state, _ = step(state, batch_fn(keys[1], t))
    equal(got.state, state)


def nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.down = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.norm(self.up(x))))

    model = Model(nnx.Rngs(0))
    graph, params, stats = nnx.split(model, nnx.Param, ...)

    def fn(variables, x):
        model = nnx.merge(graph, variables["params"], variables["stats"])
        model.eval()
        return model(x)

    def train_fn(variables, x):
        model = nnx.merge(graph, variables["params"], variables["stats"], copy=True)
        model.train()
        out = model(x)
        return out, {"stats": nnx.state(model, nnx.BatchStat)}

    return fn, train_fn, params, stats


class Stateful(NamedTuple):
    params: Any
    opt_state: Any
    stats: Any


@pytest.mark.slow
def test_nnx_modules_with_statistics():
    fn, train_fn, params, stats = nnx_model()
    tx = optax.adam(0.01)

    def make_train_step(compact):
        small = compact(train_fn)

        def train_step(state, batch):
            x, y = batch

            def loss_fn(params):
                out, new = small({"params": params, "stats": state.stats}, x)
                return jnp.mean((out - y) ** 2), new["stats"]

            (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            return Stateful(optax.apply_updates(state.params, updates), opt_state, stats), {"loss": loss}

        return train_step

    got = shrunk(
        Stateful(params, tx.init(params), stats),
        fn,
        make_train_step=make_train_step,
        variables=lambda state: {"params": state.params, "stats": state.stats},
    )
    assert got.state.params["up"]["kernel"].shape == (4, 4)
    assert got.state.stats["norm"]["mean"].shape == (4,)
    assert got.state.opt_state[0].mu["down"]["kernel"].shape == (4, 3)
    assert np.isfinite(got.history.evaluation["loss"]).all()


@pytest.mark.slow
def test_equinox_modules():
    model = eqx.nn.MLP(4, 3, 8, 2, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_array)
    tx = optax.adam(0.01)

    def fn(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    def make_train_step(compact):
        small = compact(fn)

        def train_step(state, batch):
            x, y = batch
            loss, grads = jax.value_and_grad(lambda p: jnp.mean((small(p, x) - y) ** 2))(state.params)
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            return State(optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

        return train_step

    got = shrunk(State(params, tx.init(params)), fn, make_train_step=make_train_step)
    assert [layer.weight.shape for layer in got.state.params.layers] == [(4, 4), (4, 4), (3, 4)]
    assert jax.tree.map(jnp.shape, got.state.opt_state[0].nu) == jax.tree.map(jnp.shape, got.state.params)


# Layers, planners, initializations.


def residual(params, x):
    x = x @ params["into"]
    for name in ("a", "b", "c"):
        x = x + jnp.tanh(x @ params[name]["up"]) @ params[name]["down"]
    return x @ params["out"]


def residual_params():
    shapes = {"into": (4, 6), "out": (6, 3)} | {name: {"up": (6, 5), "down": (5, 6)} for name in "abc"}
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    keys = jax.random.split(jax.random.key(3), len(leaves))
    drawn = [jax.random.normal(k, s) / 3 for k, s in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def test_layers_in_rounds():
    got = shrunk(
        state_of(params=residual_params()),
        residual,
        planner=jp.RemoveLayers(budget="branches"),
        sparsities=[1 / 3, 2 / 3],
    )
    assert got.history.parameters.tolist() == [222, 162, 102]
    left = sorted(got.state.params)
    assert len(left) == 3 and left[1:] == ["into", "out"]
    assert sorted(got.state.opt_state[0].mu) == left
    (name,) = set("abc") & set(left)
    p = got.state.params
    x = X @ p["into"]
    want = (x + jnp.tanh(x @ p[name]["up"]) @ p[name]["down"]) @ p["out"]
    np.testing.assert_allclose(got.plan.compact(residual)(p, X), want, rtol=1e-5, atol=1e-6)


class ResidualNet(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        for _ in range(3):
            y = nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(nn.Dense(6)(x))
            x = x + nn.relu(y)
        return nn.Dense(3)(x)


@pytest.mark.slow
def test_layers_with_statistics_are_left_out_of_the_training_function_too():
    variables = ResidualNet().init(jax.random.key(0), X)
    state = BatchNormState.create(apply_fn=None, average=variables["params"], tx=NET_TX, **variables)

    def train_fn(variables, x):
        return ResidualNet(train=True).apply(variables, x, mutable=["batch_stats"])

    got = shrunk(
        state,
        ResidualNet().apply,
        make_train_step=lambda compact: linen_step(compact(train_fn)),
        variables=linen_variables,
        planner=jp.RemoveLayers(budget="branches"),
        sparsities=[0.3, 0.6],
    )
    (left,) = got.state.batch_stats
    number = int(left[-1])
    p = got.state.params
    assert sorted(p) == sorted([left, "Dense_0", f"Dense_{number + 1}", "Dense_4"])
    assert sorted(got.state.average) == sorted(got.state.opt_state[0].mu) == sorted(p)
    x = X @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    y = x @ p[f"Dense_{number + 1}"]["kernel"] + p[f"Dense_{number + 1}"]["bias"]
    mean, var = got.state.batch_stats[left]["mean"], got.state.batch_stats[left]["var"]
    y = (y - mean) / jnp.sqrt(var + 1e-5) * p[left]["scale"] + p[left]["bias"]
    want = (x + nn.relu(y)) @ p["Dense_4"]["kernel"] + p["Dense_4"]["bias"]
    small = got.plan.compact(ResidualNet().apply)(linen_variables(got.state), X)
    np.testing.assert_allclose(small, want, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_layers_then_widths_by_a_planner_of_ones_own(tmp_path):
    def planner(stage):
        if stage.round == 1:
            branches = jp.find_branches(stage.fn, stage.params, *stage.inputs)
            return jp.plan_layers(branches, stage.params, number=1)
        groups = jp.find_groups(stage.fn, stage.params, *stage.inputs)
        return jp.plan_removal(groups, stage.params, stage.share)

    options = {"planner": planner, "sparsities": [0.25, 0.5, 0.6], "fn": residual}
    for rewind in (jp.Finetune(), jp.Rewind(), jp.RewindLearningRate()):
        got = shrunk(state_of(params=residual_params()), rewind=rewind, **options)
        assert got.history.parameters[1] == 162 and all(got.history.parameters[2:] <= [111, 89])
        shapes = jax.tree.map(jnp.shape, got.state.params)
        assert jax.tree.map(jnp.shape, got.state.opt_state[0].mu) == shapes
        state = state_of(params=residual_params())
        folder = tmp_path / type(rewind).__name__
        again = stopped_and_resumed(folder, 2, state=state, rewind=rewind, **options)
        equal(again.state, got.state)


@pytest.mark.slow
def test_reinitialized_weights_are_the_kept_ones_of_a_new_draw():
    def init_fn(key):
        return jax.tree.map(lambda w: jax.random.normal(key, w.shape), params_of())

    got = shrunk(state_of(optax.sgd(1e-30)), rounds=2, steps=1, rewind=jp.Reinitialize(init_fn))
    drawn = init_fn(jax.random.split(jax.random.fold_in(KEY, 2), 3)[2])
    equal(got.state.params, got.plan.shrink(drawn))


def test_a_state_that_is_trained_already_starts_with_the_first_removal():
    got = shrunk(steps=[0, 2, 5])
    assert got.history.steps.tolist() == [0, 2, 5]
    assert np.isnan(got.history.metrics["loss"][0]) and np.isfinite(got.history.metrics["loss"][1:]).all()
    np.testing.assert_array_equal(got.history.evaluation["loss"][0], evaluate(mlp, params_of())["loss"])


# Resuming.


class Stop(Exception):
    pass


def stopped_and_resumed(folder, after, **options):
    """A run that an exception ends in the evaluation of a round, and the run that continues it."""
    count = iter(range(100))

    def stopping(fn, params):
        if next(count) == after:
            raise Stop
        return evaluate(fn, params)

    with pytest.raises(Stop):
        shrunk(folder=folder, **{**options, "evaluate": stopping})
    return shrunk(folder=folder, **options)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("after", [1, 0, 2])
@pytest.mark.parametrize("name", REWINDS)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path, name, after):
    options = {"rewind": REWINDS[name][0]}
    got, again = shrunk(**options), stopped_and_resumed(tmp_path / "run", after, **options)
    for one in (again, shrunk(folder=tmp_path / "run", **options)):  # the last one has nothing left to do
        equal(one.state, got.state)
        equal(one.plan.masks(params_of()), got.plan.masks(params_of()))
        equal(one.history._asdict(), got.history._asdict())


@pytest.mark.slow
def test_a_resumed_run_of_linen_keeps_statistics(tmp_path):
    options = {
        "state": linen_state(),
        "fn": Net().apply,
        "make_train_step": lambda compact: linen_step(compact(train_net)),
        "variables": linen_variables,
    }
    equal(stopped_and_resumed(tmp_path / "run", 2, **options).state, shrunk(**options).state)


def test_a_folder_of_other_settings_is_refused(tmp_path):
    shrunk(folder=tmp_path / "run", steps=1, rounds=1)
    with pytest.raises(ValueError, match=r"its `steps` was \[1, 1\], not \[2, 2\]"):
        shrunk(folder=tmp_path / "run", steps=2, rounds=1)
    with pytest.raises(ValueError, match="its `key`"):
        shrunk(folder=tmp_path / "run", steps=1, rounds=1, key=jax.random.key(5))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="has other files"):
        shrunk(folder=tmp_path / "other")


# Mistakes.


def test_sparsities_are_those_of_imp():
    found = [
        sparsities_of(3, None, jp.schedules.linear(0.9, begin=0, end=3)),
        sparsities_of(None, None, np.array([0.3, 0.6, 0.9])),
        sparsities_of(2, None, None),
        sparsities_of(np.int64(1), 0.1, None),
        sparsities_of(None, None, (0, 0.5, 0.5)),
    ]
    assert found == [[0.3, 0.6, 0.9], [0.3, 0.6, 0.9], [0.2, 0.36], [0.1], [0.0, 0.5, 0.5]]
    with pytest.raises(TypeError, match="`rate` must be known numbers"):
        jax.jit(lambda rate: sparsities_of(1, rate, None))(0.1)
    with pytest.raises(TypeError, match="`rate` must be known numbers"):
        sparsities_of(1, {"up": 0.1}, None)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rounds": 0}, ValueError, "`rounds` must be a whole number of at least 1"),
        ({"rate": 0.0}, ValueError, r"`rate` must be in \(0, 1\)"),
        ({"rate": 30}, ValueError, "pass 0.3"),
        ({"rounds": None}, TypeError, "`rounds` must be given"),
        ({"sparsities": [0.5, 0.4]}, ValueError, "`sparsities` must not fall"),
        ({"sparsities": [0.5, 1.0]}, ValueError, r"`sparsities\[1\]` must be in"),
        ({"sparsities": [0.5], "rounds": 2}, ValueError, "one entry for each of the 2 rounds"),
        ({"sparsities": [0.5], "rate": 0.2}, ValueError, "pass either"),
        ({"sparsities": []}, TypeError, "`sparsities` must be a sequence"),
        ({"sparsities": [{"up": 0.5}]}, TypeError, "`sparsities` must be known numbers"),
        ({"steps": 0}, ValueError, "`steps`"),
        ({"steps": [1, 2]}, ValueError, "each of the 3 trainings"),
        ({"steps": [1, 2, 0]}, ValueError, r"`steps\[2\]` must be .* at least 1"),
        ({"steps": [-1, 2, 1]}, ValueError, r"`steps\[0\]` must be .* at least 0"),
        ({"rewind": jp.Rewind(4)}, ValueError, "`rewind` must go back"),
        ({"rewind": None}, TypeError, "`rewind` must be"),
        ({"make_train_step": lambda compact: None}, TypeError, "must return a function"),
        ({"planner": lambda stage: None}, TypeError, "`planner` must return a plan"),
        ({"sparsities": [0.95]}, ValueError, "can't be reached"),
        ({"state": params_of()}, TypeError, "no .params"),
        ({"evaluate": lambda fn, params: {"a": "x"}}, TypeError, "real numbers"),
        ({"planner": None}, TypeError, "`planner` must be"),
        ({"fn": 3}, TypeError, "`fn` must be"),
        ({"make_train_step": 3}, TypeError, "`make_train_step` must be"),
        ({"evaluate": 3}, TypeError, "`evaluate` must be"),
        ({"planner": jp.RemoveUnits(exclude="bisa")}, ValueError, "'bisa' matched no group"),
        ({"variables": lambda state: jax.tree.map(lambda x: 2 * x, state.params)}, ValueError, "`variables`"),
        ({"variables": lambda state: {"a": state.params["up"] + 1.0}}, ValueError, "`variables`"),
    ],
)
def test_mistakes_are_told(options, error, match):
    with pytest.raises(error, match=match):
        shrunk(**options)


def test_the_loop_is_not_for_jit():
    with pytest.raises(ValueError, match="is not for jit"):
        jax.jit(lambda state: shrunk(state).state)(state_of())


def test_a_schedule_that_has_run_out_is_refused_before_training():
    state = state_of(optax.sgd(optax.linear_schedule(0.1, 0.0, 4)))
    with pytest.raises(ValueError, match="leaves round 1 nothing to train"):
        shrunk(state)
    shrunk(state, rewind=jp.RewindLearningRate(), rounds=1)
    with pytest.raises(ValueError, match="leaves round 2 nothing to train"):
        shrunk(state, steps=[0, 4, 1])


def test_the_loop_stops_with_a_warning_when_nothing_more_can_be_removed():
    def planner(stage):
        groups = jp.find_groups(stage.fn, stage.params, *stage.inputs)
        share = 0.5 if groups["bias[0]"].size > 5 else 0.0
        return jp.plan_removal(groups, stage.params, share, budget="units")

    with pytest.warns(UserWarning, match="nothing in round 2.* Stopped after round 1 of 4"):
        got = shrunk(rounds=4, planner=planner)
    assert got.history.parameters.tolist() == [128, 4 * 5 + 5 + 5 * 3 + 9]


def test_a_round_too_small_to_remove_a_unit_trains_on():
    traces = []
    state = state_of().replace(step=jnp.zeros([], jnp.int32))
    got = shrunk(
        state, sparsities=[0.01, 0.2, 0.21], make_train_step=lambda compact: stepper(compact(mlp), traces)
    )
    assert got.history.parameters.tolist() == [128, 128, 4 * 8 + 8 + 8 * 5 + 15, 4 * 8 + 8 + 8 * 5 + 15]
    assert len(traces) == 2


def test_history_prints_as_a_table_and_the_bar_counts_all_steps(capsys):
    got = shrunk(progress=True)
    assert "12/12" in capsys.readouterr().err
    lines = str(got.history).splitlines()
    assert lines[0].split() == [
        "round",
        "sparsity",
        "parameters",
        "FLOPs",
        "steps",
        "training",
        "loss",
        "loss",
    ]
    assert [line.split()[2] for line in lines[2:]] == [f"{n}" for n in got.history.parameters]
