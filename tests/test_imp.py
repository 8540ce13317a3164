"""The IMP loop: the ladder, rewinding, replicates, controls, any state, bad input."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import struct
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.imp import Carry
from jaxprune.rewind import replace

X = jax.random.normal(jax.random.key(100), (64, 6))
Y = jnp.sin(X @ jax.random.normal(jax.random.key(101), (6, 3)))
SCHEDULE = optax.linear_schedule(0.02, 0.001, 10)


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.tanh(nn.Dense(10)(x)))


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean((MLP().apply({"params": params}, x) - y) ** 2)


def train_step(state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
    return state.apply_gradients(grads=grads), {"loss": loss}


def batch_fn(key, step):
    rows = jax.random.randint(jax.random.fold_in(key, step), (16,), 0, len(X))
    return X[rows], Y[rows]


def evaluate(state):
    return {"loss": loss_fn(state.params, (X, Y))}


def params_of(seed=0):
    return MLP().init(jax.random.key(seed), X)["params"]


TX = jp.masked(optax.adam(SCHEDULE))


def state_of(seed=0, tx=TX):
    return TrainState.create(apply_fn=None, params=params_of(seed), tx=tx)


def experiment(**kwargs):
    kwargs = {"steps": 6, "rounds": 3, "evaluate": evaluate} | kwargs
    return jp.imp(train_step, batch_fn, **kwargs)


def by_hand(key, state, imp, rewind, rate=0.2):
    """The same experiment as Python loops over `make_masks`, one training step at a time."""
    step = jax.jit(train_step)
    masks, snapshot, rows = None, None, []
    for r in range(imp.rounds + 1):
        batch_key = jax.random.split(jax.random.fold_in(key, r), 3)[0]
        start = 0
        if r:
            masks = jp.make_masks(jp.scores.magnitude(state.params), 1 - (1 - rate) ** r, prior=masks)
            state, start = rewind(state, snapshot)
            params = jp.apply_masks(state.params, masks)
            state = state.replace(params=params, opt_state=jp.replace_masks(state.opt_state, masks))
        for t in range(start, imp.steps):
            if r == 0 and t == imp.rewind.step:
                snapshot = state
            state, metrics = step(state, batch_fn(batch_key, t))
        rows.append((masks, float(metrics["loss"]), float(evaluate(state)["loss"])))
    return state, rows


REWINDS = {
    "rewind_0": (jp.Rewind(), lambda state, snap: (snap, 0)),
    "rewind_2": (jp.Rewind(step=2), lambda state, snap: (snap, 2)),
    "learning_rate_2": (
        jp.RewindLearningRate(step=2),
        lambda state, snap: (state.replace(opt_state=snap.opt_state, step=snap.step), 2),
    ),
    "finetune": (jp.Finetune(), lambda state, snap: (state, 0)),
}


@pytest.mark.parametrize("name", REWINDS)
def test_one_program_equals_loops_by_hand(name):
    rewind, restore = REWINDS[name]
    imp = experiment(rewind=rewind, keep_masks=True)
    key = jax.random.key(1)
    state, history = jax.jit(imp.run)(key, state_of())
    want, rows = by_hand(key, state_of(), imp, restore)
    for r, (masks, loss, value) in enumerate(rows):
        np.testing.assert_allclose(history.metrics["loss"][r], loss, rtol=1e-4)
        np.testing.assert_allclose(history.evaluation["loss"][r], value, rtol=1e-4)
        got = jax.tree.map(lambda m, r=r: m[r], history.masks)
        if r:
            jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b)), got, masks)
        else:
            assert all(bool(m.all()) for m in jax.tree.leaves(got))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, want.params)
    assert int(state.step) == int(want.step)


def test_ladder_of_the_lottery_ticket_paper():
    """LeNet-300-100 shapes, 20 % a round, 10 % on the output layer, each layer by itself."""
    shapes = {"Dense_0": (784, 300), "Dense_1": (300, 100), "Dense_2": (100, 10)}
    params = {
        name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])} for name, shape in shapes.items()
    }
    rate = {name: {"kernel": 0.1 if name == "Dense_2" else 0.2, "bias": 0.0} for name in shapes}

    class State(NamedTuple):
        params: Any
        opt_state: Any = ()

    def no_training(state, batch):
        return state, ()

    for chosen, want in (
        (rate, {3: 51.28, 7: 21.07, 9: 13.52, 11: 8.68, 12: 6.95, 15: 3.58, 18: 1.85, 20: 1.19}),
        (0.2, {3: 51.20, 7: 20.97, 9: 13.42, 11: 8.59, 12: 6.87, 15: 3.52, 18: 1.80, 20: 1.15}),
    ):
        imp = jp.imp(no_training, lambda key, step: step, steps=1, rounds=20, rate=chosen)
        _, history = jax.jit(imp.run)(jax.random.key(0), State(params))
        kept = {r: round(100 * int(history.kept[r]) / 266_200, 2) for r in want}
        assert kept == want
        assert int(history.kept[0]) == 266_200
        np.testing.assert_allclose(history.sparsity, 1 - history.kept / 266_200, atol=1e-6)


def test_pruned_weights_are_zero_after_the_last_round_and_the_masks_are_nested():
    imp = experiment(keep_masks=True, rounds=4)
    state, history = jax.jit(imp.run)(jax.random.key(0), state_of())
    masks = jp.get_masks(state.opt_state)
    jax.tree.map(lambda m, h: np.testing.assert_array_equal(m, h[-1]), masks, history.masks)
    jax.tree.map(np.testing.assert_array_equal, state.params, jp.apply_masks(state.params, masks))
    assert jp.sparsity(state.params, masks) == round((1 - 0.8**4) * 90) / 90
    for mask in jax.tree.leaves(history.masks):
        if mask.ndim > 1:
            assert not bool((mask[1:] & ~mask[:-1]).any())


def test_step_by_step_equals_run_bit_for_bit():
    imp = experiment(rewind=jp.Rewind(step=2), every=2)
    key = jax.random.key(2)
    state, history = jax.jit(imp.run)(key, state_of())
    traces, rows = [], []
    carry, step = jax.jit(imp.init)(key, state_of()), jax.jit(lambda c: (traces.append(c), imp.step(c))[1])
    for _ in range(imp.rounds + 1):
        carry, row = step(carry)
        rows.append(row)
    assert len(traces) == 1, "one compilation for all rounds"
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *rows)
    jax.tree.map(np.testing.assert_array_equal, history, stacked)
    jax.tree.map(np.testing.assert_array_equal, state.params, carry.state.params)
    with pytest.raises(ValueError, match=r"all 4 rounds \(0 to 3\) are done"):
        imp.step(carry)


def test_vmap_over_four_seeds_equals_four_single_runs():
    imp = experiment(keep_masks=True, rewind=jp.Rewind(step=1), every=3)
    keys = jax.random.split(jax.random.key(3), 4)
    states = [state_of(seed) for seed in range(4)]
    many = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *states)
    state, history = jax.jit(jax.vmap(imp.run))(keys, many)
    for i in range(4):
        alone, rows = jax.jit(imp.run)(keys[i], states[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a, b[i]), rows.masks, history.masks)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=1e-4), rows.curve, history.curve
        )
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], atol=1e-5), alone.params, state.params
        )
    losses = history.evaluation["loss"]
    assert len(np.unique(np.asarray(losses))) == losses.size, "every replicate has its own weights and data"


def test_vmapped_step_with_an_unbatched_round_equals_run():
    imp = experiment(rewind=jp.Rewind(step=2))
    keys = jax.random.split(jax.random.key(4), 2)
    many = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), state_of(0), state_of(1))
    axes = Carry(None, 0, 0, 0, 0)
    carry = jax.jit(jax.vmap(imp.init, out_axes=axes))(keys, many)
    step = jax.jit(jax.vmap(imp.step, in_axes=(axes,), out_axes=(axes, 0)))
    for _ in range(imp.rounds + 1):
        carry, row = step(carry)
    state, history = jax.jit(jax.vmap(imp.run))(keys, many)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry.state.params, state.params)
    np.testing.assert_allclose(row.evaluation["loss"], history.evaluation["loss"][:, -1], rtol=1e-5)


def test_curves_start_where_the_round_starts():
    imp = experiment(rewind=jp.Rewind(step=3), every=2, steps=7)
    assert imp.curve_steps == (2, 4, 6)
    _, history = jax.jit(imp.run)(jax.random.key(0), state_of())
    curve = np.asarray(history.curve["loss"])
    assert curve.shape == (4, 3)
    assert np.isfinite(curve[0]).all() and np.isnan(curve[1:, 0]).all() and np.isfinite(curve[1:, 1:]).all()
    imp = experiment(every=3)
    _, history = jax.jit(imp.run)(jax.random.key(0), state_of())
    np.testing.assert_allclose(history.curve["loss"][:, -1], history.evaluation["loss"], rtol=1e-6)


@pytest.mark.parametrize("kwargs", [
    {"scope": "local"}, {"structure": jp.Channels()}, {"structure": jp.Block((2, 2)), "scope": "local"},
    {"structure": jp.NM(1, 2), "rounds": 2}, {"score": jp.scores.random}, {"rounds": 0},
    {"where": jp.prunable(params_of(), exclude="Dense_1")},
    {"score": lambda params: jp.scores.normalize(jp.scores.magnitude(params))},
])  # fmt: skip
def test_every_structure_scope_and_score(kwargs):
    if isinstance(kwargs.get("structure"), jp.NM):
        kwargs = kwargs | {"where": jp.prunable(params_of(), include="Dense_1/kernel")}
    imp = experiment(**kwargs)
    state, history = jax.jit(imp.run)(jax.random.key(0), state_of())
    masks = jp.get_masks(state.opt_state)
    jax.tree.map(np.testing.assert_array_equal, state.params, jp.apply_masks(state.params, masks))
    assert (np.diff(history.sparsity) > 0).all() and len(history.sparsity) == imp.rounds + 1
    assert float(history.sparsity[-1]) == pytest.approx(1 - 0.8**imp.rounds, abs=0.1)


def test_random_scores_differ_between_rounds_and_replicates():
    imp = experiment(score=jp.scores.random, keep_masks=True)
    first, second = (
        jax.jit(imp.run)(jax.random.key(s), state_of())[1].masks["Dense_0"]["kernel"] for s in (0, 1)
    )
    assert not bool((first[1] == second[1]).all())


def test_reinitialize_draws_anew_each_round_and_restarts_the_optimizer():
    drawn = jp.Reinitialize(lambda key: MLP().init(key, X))
    imp = experiment(rewind=drawn, steps=1, rounds=2)
    key = jax.random.key(5)
    carry, _ = imp.step(imp.init(key, state_of()))
    carry, _ = imp.step(carry)
    _, _, init_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    batch_key = jax.random.split(jax.random.fold_in(key, 1), 3)[0]
    start = state_of().replace(params=MLP().init(init_key, X)["params"])
    masks = carry.masks
    start = start.replace(
        params=jp.apply_masks(start.params, masks), opt_state=jp.replace_masks(start.opt_state, masks)
    )
    want, _ = train_step(start, batch_fn(batch_key, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry.state.params, want.params)
    assert int(carry.state.step) == 1


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
    variables = BNNet().init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, X)
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
    trained, _ = imp.step(carry)
    restored = rewind.restore(jax.random.key(0), trained.state, trained.snapshot)
    if isinstance(rewind, jp.Rewind):
        batch_key = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)[0]
        want = carry.state
        for t in range(2):
            want, _ = step(want, batch_fn(batch_key, t))
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


def test_learning_rate_rewinding_restores_moments_with_their_count():
    imp = experiment(rewind=jp.RewindLearningRate(step=2))
    carry, _ = imp.step(imp.init(jax.random.key(0), state_of()))
    restored = imp.rewind.restore(jax.random.key(0), carry.state, carry.snapshot)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, carry.snapshot[0])
    assert float(jnp.abs(restored.opt_state.inner_state[0].mu["Dense_0"]["kernel"]).sum()) > 0


def test_rewound_moments_of_pruned_weights_are_cleared():
    imp = experiment(rewind=jp.Rewind(step=3), steps=4, rounds=1, rate=0.5)
    carry, _ = imp.step(imp.init(jax.random.key(0), state_of()))
    assert float(jnp.abs(carry.snapshot.opt_state.inner_state[0].mu["Dense_0"]["kernel"]).min()) > 0
    carry, _ = imp.step(carry)
    mask = carry.masks["Dense_0"]["kernel"]
    assert not bool(jnp.any(carry.state.opt_state.inner_state[0].mu["Dense_0"]["kernel"][~mask] != 0))


def test_an_optimizer_without_masks_is_held_by_the_loop():
    imp = experiment()
    state, history = jax.jit(imp.run)(jax.random.key(0), state_of(tx=optax.adamw(0.01, weight_decay=0.1)))
    zeros = sum(int((w == 0).sum()) for w in jax.tree.leaves(state.params) if w.ndim == 2)
    assert zeros == 90 - int(history.kept[-1])


def test_controls_run_from_the_same_masks():
    imp = experiment(keep_masks=True, every=3)
    _, history = jax.jit(imp.run)(jax.random.key(0), state_of())

    def control(mask_key, masks):
        fresh = state_of().replace(params=params_of(7))
        return imp.train(jax.random.key(9), fresh, jp.shuffle_masks(mask_key, masks))

    states, rows = jax.jit(jax.vmap(control))(jax.random.split(jax.random.key(1), 4), history.masks)
    np.testing.assert_array_equal(rows.kept, history.kept)
    assert rows.curve["loss"].shape == (4, 2)
    last = jax.tree.map(lambda x: x[-1], states.params)
    assert sum(int((w == 0).sum()) for w in jax.tree.leaves(last) if w.ndim == 2) == 90 - int(
        history.kept[-1]
    )
    state, _ = imp.train(jax.random.key(9), state_of(), jax.tree.map(lambda m: m[0], history.masks))
    plain = state_of()
    batch_key = jax.random.split(jax.random.key(9), 3)[0]
    for t in range(imp.steps):
        plain, _ = train_step(plain, batch_fn(batch_key, t))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, plain.params)


@dataclasses.dataclass(frozen=True)
class Frozen:
    params: Any
    opt_state: Any


jax.tree_util.register_dataclass(Frozen)


class Tuple(NamedTuple):
    params: Any
    opt_state: Any


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


def test_bfloat16_parameters():
    def cast(tree):
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)

    tx = jp.masked(optax.adam(0.01))
    state = TrainState.create(apply_fn=None, params=cast(params_of()), tx=tx)
    imp = jp.imp(train_step, lambda k, t: cast(batch_fn(k, t)), steps=3, rounds=3)
    state, history = jax.jit(imp.run)(jax.random.key(0), state)
    assert state.params["Dense_0"]["kernel"].dtype == jnp.bfloat16
    assert history.kept.tolist() == [90, 72, 58, 46]


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


def make(**kwargs):
    return lambda: experiment(**kwargs)


def run(step=train_step, state=None, **kwargs):
    imp = jp.imp(step, batch_fn, **({"steps": 2, "rounds": 1} | kwargs))
    return lambda: imp.init(jax.random.key(0), state_of() if state is None else state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make(steps=0), "`steps` must be a whole number of at least 1, got 0"),
        (make(rounds=-1), "`rounds` must be a whole number of at least 0"),
        (make(rounds=2.5), "`rounds` must be a whole number"),
        (make(rate=20), "`rate` must be in .* pass 0.2"),
        (make(every=2, evaluate=None), "`every` asks for curves of `evaluate`"),
        (make(every=99), "`every` must be at most `steps`"),
        (make(rewind=jp.Rewind(6)), "`rewind` must go back to a step inside the round.*the last one is 5"),
        (make(rewind="lr"), "`rewind` must be Rewind"),
        (make(scope="layer"), "`scope` must be"),
        (make(structure=jp.NM(2, 4), rounds=5), "`rounds` must not pass the sparsity 0.5"),
        (lambda: jp.Rewind(-1), "`step` must be a whole number"),
        (lambda: jp.Reinitialize(None), "`init_fn` must map a key"),
        (run(rate={"w": 0.2}), "`rate` must have the tree structure"),
        (run(state=(1, 2)), "must have .params and .opt_state"),
        (run(step=lambda s, b: (s.params, ())), "`train_step` must return a state like"),
        (
            run(step=lambda s, b: (replace(s, params=jax.tree.map(lambda x: x[:1], s.params)), ())),
            "went from",
        ),
        (run(where=jax.tree.map(lambda _: False, params_of())), "nothing to prune"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_reinitialize_with_other_shapes_is_named():
    imp = experiment(
        rewind=jp.Reinitialize(lambda key: jax.tree.map(lambda w: w[..., :1], params_of())), rounds=1
    )
    with pytest.raises(
        ValueError, match=r"`init_fn` must give the shapes of the parameters, got .* at 'Dense_0/bias'"
    ):
        jax.jit(imp.run)(jax.random.key(0), state_of())


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


def test_a_training_without_any_learning_is_left_alone():
    moves = largest_moves(experiment(rewind=jp.Finetune()), state_of(tx=jp.masked(optax.sgd(0.0))))
    assert moves == [0, 0, 0]


def test_finetuning_with_a_restart_is_learning_rate_rewinding_to_step_0():
    runs = [
        jax.jit(experiment(rewind=rewind).run)(jax.random.key(1), state_of())[0]
        for rewind in (jp.Finetune("restart"), jp.RewindLearningRate())
    ]
    jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)
    with pytest.raises(ValueError, match="`schedule` must be 'continue' or 'restart', got 'stop'"):
        jp.Finetune("stop")  # pyright: ignore[reportArgumentType]


def test_a_control_from_a_trained_state_whose_schedule_has_run_out_is_an_error():
    imp, state = experiment(rewind=jp.Rewind()), state_of(tx=jp.masked(optax.adam(COSINE)))
    masks = jax.tree.map(lambda w: jnp.ones_like(w, bool), state.params)
    trained, _ = imp.train(jax.random.key(0), state, masks)
    with pytest.raises(ValueError, match="`state` must be one before training"):
        imp.train(jax.random.key(0), trained, masks)


@pytest.mark.parametrize("rewind", [jp.Rewind(), jp.Rewind(2), jp.RewindLearningRate(1), jp.Finetune()])
def test_a_donated_carry_leaves_the_callers_arrays_alone(rewind):
    imp, key, state = (
        experiment(rewind=rewind, steps=3, rounds=1, evaluate=None),
        jax.random.key(4),
        state_of(),
    )
    want, _ = jax.jit(imp.run)(key, state)
    for init in (imp.init, jax.jit(imp.init)):
        carry, step = init(key, state), jax.jit(imp.step, donate_argnums=0)
        for _ in range(2):
            carry, _ = step(carry)
        jax.tree.map(np.testing.assert_array_equal, carry.state.params, want.params)
    assert not any(x.is_deleted() for x in jax.tree.leaves((key, state)) if isinstance(x, jax.Array))
