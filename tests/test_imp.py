"""The IMP loop: the ladder, rewinding, replicates, controls, bad input."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imp_task import MLP, X, batch_fn, evaluate, experiment, params_of, state_of, train_step

import jaxprune as jp
from jaxprune._imp import Carry
from jaxprune.rewind import replace


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_vmap_over_four_seeds_equals_four_single_runs():
    imp = experiment(keep_masks=True, rewind=jp.Rewind(step=1), every=3)
    keys = jax.random.split(jax.random.key(3), 4)
    states = [state_of(seed) for seed in range(4)]
    many = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(v) for v in x]), *states)
    state, history = jax.jit(jax.vmap(imp.run))(keys, many)
    run = jax.jit(imp.run)
    for i in range(4):
        alone, rows = run(keys[i], states[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a, b[i]), rows.masks, history.masks)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=1e-4), rows.curve, history.curve
        )
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], atol=1e-5), alone.params, state.params
        )
    losses = history.evaluation["loss"]
    assert len(np.unique(np.asarray(losses))) == losses.size, "every replicate has its own weights and data"


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_random_scores_differ_between_rounds_and_replicates():
    imp = experiment(score=jp.scores.random, keep_masks=True)
    run = jax.jit(imp.run)
    first, second = (run(jax.random.key(s), state_of())[1].masks["Dense_0"]["kernel"] for s in (0, 1))
    assert not bool((first[1] == second[1]).all())


@pytest.mark.slow
def test_reinitialize_draws_anew_each_round_and_restarts_the_optimizer():
    drawn = jp.Reinitialize(lambda key: MLP().init(key, X))
    imp = experiment(rewind=drawn, steps=1, rounds=2)
    key, step = jax.random.key(5), jax.jit(imp.step)
    carry, _ = step(jax.jit(imp.init)(key, state_of()))
    carry, _ = step(carry)
    _, _, init_key = jax.random.split(jax.random.fold_in(key, 1), 3)
    batch_key = jax.random.split(jax.random.fold_in(key, 1), 3)[0]
    start = state_of().replace(params=MLP().init(init_key, X)["params"])
    masks = carry.masks
    start = start.replace(
        params=jp.apply_masks(start.params, masks), opt_state=jp.replace_masks(start.opt_state, masks)
    )
    want, _ = jax.jit(train_step)(start, batch_fn(batch_key, 0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), carry.state.params, want.params)
    assert int(carry.state.step) == 1


@pytest.mark.slow
def test_learning_rate_rewinding_restores_moments_with_their_count():
    imp = experiment(rewind=jp.RewindLearningRate(step=2))
    carry, _ = jax.jit(imp.step)(imp.init(jax.random.key(0), state_of()))
    restored = imp.rewind.restore(jax.random.key(0), carry.state, carry.snapshot)
    jax.tree.map(np.testing.assert_array_equal, restored.opt_state, carry.snapshot[0])
    assert float(jnp.abs(restored.opt_state.inner_state[0].mu["Dense_0"]["kernel"]).sum()) > 0


@pytest.mark.slow
def test_rewound_moments_of_pruned_weights_are_cleared():
    imp = experiment(rewind=jp.Rewind(step=3), steps=4, rounds=1, rate=0.5)
    step = jax.jit(imp.step)
    carry, _ = step(imp.init(jax.random.key(0), state_of()))
    assert float(jnp.abs(carry.snapshot.opt_state.inner_state[0].mu["Dense_0"]["kernel"]).min()) > 0
    carry, _ = step(carry)
    mask = carry.masks["Dense_0"]["kernel"]
    assert not bool(jnp.any(carry.state.opt_state.inner_state[0].mu["Dense_0"]["kernel"][~mask] != 0))


@pytest.mark.slow
def test_controls_run_from_the_same_masks():
    imp = experiment(keep_masks=True, every=3)
    _, history = jax.jit(imp.run)(jax.random.key(0), state_of())

    def control(mask_key, masks):
        fresh = state_of().replace(params=params_of(7))
        return imp.train(jax.random.key(9), fresh, jp.shuffle_masks(masks, key=mask_key))

    states, rows = jax.jit(jax.vmap(control))(jax.random.split(jax.random.key(1), 4), history.masks)
    np.testing.assert_array_equal(rows.kept, history.kept)
    assert rows.curve["loss"].shape == (4, 2)
    last = jax.tree.map(lambda x: x[-1], states.params)
    assert sum(int((w == 0).sum()) for w in jax.tree.leaves(last) if w.ndim == 2) == 90 - int(
        history.kept[-1]
    )
    state, _ = imp.train(jax.random.key(9), state_of(), jax.tree.map(lambda m: m[0], history.masks))
    plain, step = state_of(), jax.jit(train_step)
    batch_key = jax.random.split(jax.random.key(9), 3)[0]
    for t in range(imp.steps):
        plain, _ = step(plain, batch_fn(batch_key, t))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, plain.params)


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
        (make(rewind=jp.Rewind(6)), "`rewind` must go back to a step of the round.*the last one is 5"),
        (make(rewind="lr"), "`rewind` must be Rewind"),
        (make(scope="layer"), "`scope` must be"),
        (make(structure=jp.NM(2, 4), rounds=5), "`rounds` must not pass 0.5, the sparsity of NM"),
        (lambda: jp.Rewind(-1), "`step` must be a whole number"),
        (lambda: jp.Reinitialize(None), "`init_fn` must map a key"),
        (run(rate={"w": 0.2}), "`rate` must have the tree structure"),
        (run(state=(1, 2)), "must have .params and .opt_state"),
        (run(step=lambda s, b: (s.params, ())), "`train_step` must return a state like"),
        (
            run(step=lambda s, b: (replace(s, params=jax.tree.map(lambda x: x[:1], s.params)), ())),
            "the shape of .* changed from",
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
        ValueError, match=r"`init_fn` must return the shapes of the parameters, got .* at 'Dense_0/bias'"
    ):
        jax.jit(imp.run)(jax.random.key(0), state_of())
