"""The laboratory of lottery tickets, against loops and lines by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from imp_task import X, Y, batch_fn, evaluate, experiment, loss_fn, params_of, state_of, train_step

import jaxprune as jp

STEPS = 8


def trained(key, state, start, stop):
    step = jax.jit(train_step)
    for number in range(start, stop):
        state, _ = step(state, batch_fn(key, number))
    return state


def line(a, b, points):
    at = [jax.tree.map(lambda x, y, t=t: (1 - t) * x + t * y, a, b) for t in np.linspace(0, 1, points)]
    return np.array([loss_fn(params, (X, Y)) for params in at])


def test_the_line_between_two_networks_is_the_mean_over_batches_at_each_point():
    a, b = params_of(0), params_of(1)
    batches = [(X[:32], Y[:32]), (X[32:], Y[32:])]
    found = jp.linear_connectivity(lambda p, batch: {"loss": loss_fn(p, batch)}, a, b, batches, points=5)
    expected = line(a, b, 5)
    np.testing.assert_allclose(found.values["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        found.barrier["loss"], expected.max() - (expected[0] + expected[-1]) / 2, rtol=1e-5
    )
    np.testing.assert_allclose(found.alpha, [0, 0.25, 0.5, 0.75, 1])


def test_a_network_is_connected_to_itself_and_the_ends_are_exact():
    a = jax.tree.map(lambda w: (w * 1e3).astype(jnp.bfloat16), params_of(0))
    found = jp.linear_connectivity(lambda p, _: p["Dense_0"]["kernel"].astype(jnp.float32).sum(), a, a, [0])
    assert float(found.barrier) == 0 and set(np.asarray(found.values).tolist()) == {float(found.values[0])}


def test_statistics_can_be_estimated_anew_and_integers_stay():
    a, b = {"w": jnp.array(1.0), "n": jnp.array(3)}, {"w": jnp.array(3.0), "n": jnp.array(9)}
    found = jp.linear_connectivity(
        lambda p, x: p["w"] * x + p["n"], a, b, [2.0], points=3, refresh=lambda p: {**p, "w": p["w"] + 1}
    )
    assert found.values.tolist() == [7, 9, 11]


@pytest.mark.parametrize(
    ("other", "more", "message"),
    [
        (
            {"w": jnp.ones(3)},
            {},
            r"`params_b` must have the shapes of `params_a`, got \(3,\) for \(2,\) at 'w'",
        ),
        ({"v": jnp.ones(2)}, {}, "`params_b`"),
        ({"w": jnp.ones(2)}, {"points": 1}, "`points` must be a whole number of at least 2"),
        ({"w": jnp.ones(2)}, {"batches": []}, "`batches` must have at least one"),
    ],
)
def test_lines_that_are_none_are_errors(other, more, message):
    arguments = {"batches": [0], "points": 3} | more
    with pytest.raises(ValueError, match=message):
        jp.linear_connectivity(lambda p, _: p["w"].sum(), {"w": jnp.ones(2)}, other, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("ticket", [False, True])
def test_instability_is_that_of_trainings_by_hand(ticket):
    tx = jp.masked(optax.adam(0.02))
    masks = jp.make_masks(jp.scores.magnitude(params_of()), 0.5) if ticket else None
    made = jp.instability(train_step, batch_fn, evaluate, steps=STEPS, splits=(0, 3, 5), points=5)
    key = jax.random.key(5)
    rows = jax.jit(made.run)(key, state_of(tx=tx), masks)
    trunk_key = jax.random.split(jax.random.fold_in(key, 0), 3)[0]  # of the dense training of `imp`
    copy_keys = jax.random.split(jax.random.fold_in(key, 2**32 - 1), 2)
    state = state_of(tx=tx)
    for row, (start, split) in enumerate(((0, 0), (0, 3), (3, 5))):
        state = trained(trunk_key, state, start, split)
        held = state
        if ticket:
            opt_state = jp.replace_masks(state.opt_state, masks)
            held = state.replace(params=jp.apply_masks(state.params, masks), opt_state=opt_state)
        a, b = (trained(k, held, split, STEPS).params for k in copy_keys)
        if ticket:
            assert int((a["Dense_0"]["kernel"] == 0).sum() + (a["Dense_1"]["kernel"] == 0).sum()) == 45
        expected = line(a, b, 5)
        np.testing.assert_allclose(rows.values["loss"][row], expected, rtol=2e-3)
        np.testing.assert_allclose(rows.ends["loss"][row], expected[[0, -1]], rtol=2e-3)
    assert rows.split.tolist() == [0, 3, 5]


@pytest.mark.slow
def test_masks_for_each_split_and_seeds_side_by_side():
    made = jp.instability(train_step, batch_fn, evaluate, steps=4, splits=(0, 2), points=3)
    state = state_of(tx=jp.masked(optax.adam(0.02)))
    one = jp.make_masks(jp.scores.magnitude(state.params), 0.5)
    many = jax.tree.map(lambda w, m: jnp.stack([jnp.broadcast_to(m, w.shape)] * 2), state.params, one)
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.jit(jax.vmap(lambda key: made.run(key, state, many)))(keys)
    alone = jax.jit(lambda key: made.run(key, state, one))(keys[1])
    np.testing.assert_allclose(both.values["loss"][1], alone.values["loss"], rtol=1e-4)
    with pytest.raises(ValueError, match="leading axis of 2, one for each split"):
        made.run(keys[0], state, jax.tree.map(lambda m: jnp.concatenate([m, m]), many))


@pytest.mark.slow
def test_a_ticket_belongs_to_the_network_that_is_split():
    """Both copies leave the weights to which `imp` with the same key rewinds, each by batches of its own."""
    made = experiment(rewind=jp.Rewind(2), rounds=1, rate=0.5, steps=4)
    key = jax.random.key(3)
    carry, _ = jax.jit(made.step)(made.init(key, state_of()))
    one_more = jp.instability(train_step, batch_fn, evaluate, steps=3, splits=(2,), points=2)
    copies = jax.random.split(jax.random.fold_in(key, 2**32 - 1), 2)
    by_hand = [loss_fn(trained(k, carry.snapshot, 2, 3).params, (X, Y)) for k in copies]
    np.testing.assert_allclose(jax.jit(one_more.run)(key, state_of()).ends["loss"], [by_hand], rtol=1e-3)


@pytest.mark.parametrize("splits", [(), (3, 2), (2, 2), (8,)])
def test_splits_that_are_none_are_errors(splits):
    with pytest.raises(ValueError, match="`splits` must"):
        jp.instability(train_step, batch_fn, evaluate, steps=STEPS, splits=splits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [jp.Rewind, jp.RewindLearningRate])
def test_late_rewinding_is_one_experiment_for_each_step(kind):
    choices = {"rounds": 2, "rate": 0.5, "steps": 5, "keep_masks": True, "every": 2}
    many = jp.late_rewinding(experiment(rewind=kind(), **choices), (0, 2, 3))
    key = jax.random.key(4)
    history = jax.jit(many.run)(key, state_of())
    for row, step in enumerate(many.steps):
        _, alone = jax.jit(experiment(rewind=kind(step), **choices).run)(key, state_of())
        here = jax.tree.map(lambda x, row=row: x[row], history)
        assert jax.tree.structure(here) == jax.tree.structure(alone)
        for found, expected in zip(jax.tree.leaves(here), jax.tree.leaves(alone), strict=True):
            assert found.shape == expected.shape and found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_seeds_and_steps_and_their_tickets_are_one_program():
    late = jp.late_rewinding(experiment(rounds=1, rate=0.5, steps=4, keep_masks=True), (0, 2))
    made = jp.instability(train_step, batch_fn, evaluate, steps=4, splits=late.steps, points=3)

    def whole(key, state):
        history = late.run(key, state)
        levels = jax.tree.map(lambda mask: jnp.moveaxis(mask, 1, 0), history.masks)
        return history, jax.lax.map(lambda masks: made.run(key, state, masks), levels)

    keys = jax.random.split(jax.random.key(0), 2)
    history, rows = jax.jit(jax.vmap(whole, (0, None)))(keys, state_of())
    assert history.evaluation["loss"].shape == (2, 2, 2) and rows.barrier["loss"].shape == (2, 2, 2)
    dense = jax.jit(made.run)(keys[1], state_of())
    np.testing.assert_allclose(rows.values["loss"][1, 0], dense.values["loss"], rtol=1e-4)
    ticket = jax.tree.map(lambda mask: mask[1, 1, 1], history.masks)
    last = jp.instability(train_step, batch_fn, evaluate, steps=4, splits=(2,), points=3)
    alone = jax.jit(last.run)(keys[1], state_of(), ticket)
    np.testing.assert_allclose(rows.values["loss"][1, 1, 1], alone.values["loss"][0], rtol=1e-4)


def test_late_rewinding_says_what_it_needs():
    with pytest.raises(TypeError, match=r"`imp` must be a jp.imp\(...\), got str"):
        jp.late_rewinding("imp", (0,))
    with pytest.raises(TypeError, match="by Rewind or RewindLearningRate, got rewind=Finetune"):
        jp.late_rewinding(experiment(rewind=jp.Finetune()), (0,))
    with pytest.raises(ValueError, match=r"`steps` must rise and be below 6, got \(0, 6\)"):
        jp.late_rewinding(experiment(), (0, 6))


def test_variants_of_a_ticket_keep_as_many_weights_and_differ_in_what_they_say():
    params = params_of()
    masks = jp.make_masks(jp.scores.magnitude(params), 0.7)
    other = jp.make_masks(jp.scores.magnitude(params_of(1)), 0.7)
    made = jp.ticket_variants(
        params, masks, key=jax.random.key(1), init_fn=lambda key: params_of(7), others={"another seed": other}
    )
    kept = {name: [int(m.sum()) for m in jax.tree.leaves(held)] for name, (_, held) in made.items()}
    for name in ("shuffled", "inverted", "signs", "reinitialized"):
        assert kept[name] == kept["ticket"]
    assert sum(kept["random"]) == sum(kept["ticket"]) and sum(kept["another seed"]) == sum(kept["ticket"])
    for values, held in made.values():
        for w, mask in zip(jax.tree.leaves(values), jax.tree.leaves(held), strict=True):
            assert mask.shape == w.shape and not np.any(np.where(mask, 0, w))
    kernel = params["Dense_0"]["kernel"]
    values, held = made["signs"]
    np.testing.assert_allclose(
        values["Dense_0"]["kernel"],
        np.where(held["Dense_0"]["kernel"], np.sign(kernel) * np.std(kernel), 0),
        rtol=1e-6,
    )
    values, held = (np.asarray(tree["Dense_0"]["kernel"]) for tree in made["inverted"])
    lowest = np.sort(np.abs(kernel).ravel())[: held.sum()]
    np.testing.assert_array_equal(np.sort(np.abs(values[held])), lowest)
    held = made["reinitialized"][1]
    new = made["reinitialized"][0]["Dense_1"]["kernel"]
    np.testing.assert_array_equal(
        new, np.where(held["Dense_1"]["kernel"], params_of(7)["Dense_1"]["kernel"], 0)
    )


def test_variants_of_channels_are_whole_channels():
    params = {"w": jax.random.normal(jax.random.key(0), (3, 8)), "b": jnp.zeros(8)}
    masks = jp.make_masks(params, 0.5, structure=jp.Channels(), scope="local")
    made = jp.ticket_variants(params, masks, key=jax.random.key(1), structure=jp.Channels())
    for _, held in made.values():
        channels = np.asarray(held["w"]).sum(0)
        assert sorted(channels.tolist()) == [0] * 4 + [3] * 4
    with pytest.raises(ValueError, match=r"`init_fn` must return the shapes .* at 'b'"):
        jp.ticket_variants(
            params, masks, key=jax.random.key(1), init_fn=lambda key: {"w": params["w"], "b": jnp.zeros(3)}
        )
    with pytest.raises(ValueError, match="`others` must have new names, got 'signs'"):
        jp.ticket_variants(
            params, masks, key=jax.random.key(1), structure=jp.Channels(), others={"signs": masks}
        )


def test_variants_of_coupled_units_are_whole_units():
    def fn(params, x):
        return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]

    params = {"up": jnp.arange(12.0).reshape(2, 6), "bias": jnp.ones(6), "down": jnp.ones((6, 3))}
    structure = jp.Coupled(jp.find_groups(fn, params, jnp.ones((1, 2))))
    masks = jp.make_masks(params, 0.5, structure=structure)
    for values, held in jp.ticket_variants(
        params, masks, key=jax.random.key(1), structure=structure
    ).values():
        units = np.asarray(held["bias"])
        assert units.sum() == 3 and {k: m.shape for k, m in held.items()} == {
            k: w.shape for k, w in values.items()
        }
        np.testing.assert_array_equal(held["up"], np.broadcast_to(units, (2, 6)))
        np.testing.assert_array_equal(held["down"], np.broadcast_to(units[:, None], (6, 3)))


def test_masks_that_prune_what_is_left_out_of_where_are_an_error():
    params = {"w": jnp.arange(8.0).reshape(2, 4), "b": jnp.ones(4)}
    masks = {"w": params["w"] > 3, "b": jnp.array([True, True, True, False])}
    with pytest.raises(ValueError, match="`masks` prunes 'b', which `where` leaves out"):
        jp.ticket_variants(params, masks, key=jax.random.key(0))
    made = jp.ticket_variants(
        params, masks, key=jax.random.key(0), where=lambda params: {"w": True, "b": True}
    )
    assert {int(held["w"].sum() + held["b"].sum()) for _, held in made.values()} == {7}


@pytest.mark.slow
def test_sanity_checks_train_every_variant_in_one_program():
    made = experiment(rounds=1, rate=0.5, steps=4)
    state, _ = jax.jit(made.run)(jax.random.key(0), state_of())
    start, traces = state_of(), []

    def train(params, masks):
        traces.append(0)
        _, row = made.train(jax.random.key(3), start.replace(params=params), masks)
        return row.evaluation["loss"]

    masks = jp.get_masks(state.opt_state)
    found = jp.sanity_checks(
        train, start.params, masks, key=jax.random.key(2), init_fn=lambda key: params_of(3)
    )
    assert len(traces) == 1 and len(found) == 6
    _, row = jax.jit(made.train)(jax.random.key(3), start, masks)
    np.testing.assert_allclose(found["ticket"], row.evaluation["loss"], rtol=1e-4)


@pytest.mark.slow
def test_statistics_of_an_nnx_model_are_interpolated_with_its_weights():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.up, self.norm = nnx.Linear(6, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
            self.down = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.down(nnx.relu(self.norm(self.up(x))))

    def of_model(model, batch):
        return jnp.mean((model(batch[0]) - batch[1]) ** 2)

    training = jp.nnx_state(
        Net(nnx.Rngs(0)), jp.masked(optax.adam(0.02)), of_model, lambda model: of_model(model, (X, Y))
    )
    masks = jp.make_masks(jp.scores.magnitude(training.state.params), 0.5)
    made = jp.instability(training.train_step, batch_fn, training.evaluate, steps=3, splits=(1,), points=3)
    key = jax.random.key(0)
    rows = jax.jit(made.run)(key, training.state, masks)
    step = jax.jit(training.train_step)
    start, _ = step(training.state, batch_fn(jax.random.split(jax.random.fold_in(key, 0), 3)[0], 0))
    start = start.replace(
        params=jp.apply_masks(start.params, masks), opt_state=jp.replace_masks(start.opt_state, masks)
    )
    ends = []
    for copy_key in jax.random.split(jax.random.fold_in(key, 2**32 - 1), 2):
        state = start
        for number in (1, 2):
            state, _ = step(state, batch_fn(copy_key, number))
        ends.append(state)
    middle = jax.tree.map(lambda a, b: (a + b) / 2 if jnp.issubdtype(a.dtype, jnp.floating) else a, *ends)
    expected = [training.evaluate(state) for state in (ends[0], middle, ends[1])]
    np.testing.assert_allclose(rows.values[0], expected, rtol=2e-3)


@pytest.mark.slow
def test_a_control_of_a_rewound_ticket_continues_at_its_step():
    made = experiment(rounds=1, rate=0.5, steps=5, rewind=jp.Rewind(2))
    carry, _ = jax.jit(made.step)(made.init(jax.random.key(0), state_of()))
    masks = jp.make_masks(jp.scores.magnitude(carry.snapshot.params), 0.5)
    key = jax.random.key(7)
    found, _ = jax.jit(made.train, static_argnums=3)(key, carry.snapshot, masks, 2)
    start = carry.snapshot.replace(
        params=jp.apply_masks(carry.snapshot.params, masks),
        opt_state=jp.replace_masks(carry.snapshot.opt_state, masks),
    )
    state = trained(jax.random.split(key, 3)[0], start, 2, 5)
    assert int(found.step) == int(state.step) == 5
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    with pytest.raises(ValueError, match="`start` must be below the 5 steps of a training, got 5"):
        made.train(key, carry.snapshot, masks, start=5)
