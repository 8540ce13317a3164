"""Coupled units: masks over groups in training, the plan that follows from them, and the same numbers on the way."""

import dataclasses

import jax
import jax.numpy as jnp
import library_models
import numpy as np
import optax
import plain_models
import pytest
from checks import difference
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune.surgery.coupled_units import coupled_units
from jaxprune.tree_nodes import leaves_of

MODELS = {**plain_models.MODELS, **library_models.MODELS}
TRAINED = ["residual CNN", "llama", "Linen LM (remat, scan, tied)", "Equinox CNN"]


def unit(p, x):
    return jnp.tanh(x @ p["up"] + p["b"]) @ p["down"] + p["out"]


PARAMS = {  # the units sum to 7, 6, 4, 5
    "up": jnp.array([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0]]),
    "b": jnp.array([0.0, 3.0, 0.0, 0.0]),
    "down": jnp.array([[5.0], [1.0], [1.0], [1.0]]),
    "out": jnp.ones(1),
}
X = jnp.ones((3, 2))


@pytest.fixture(scope="module")
def groups():
    return jp.find_groups(unit, PARAMS, X)


def kept_units(masks):
    """Asserts that the leaves agree, and that the leaf of no unit is kept."""
    assert masks["up"].shape == (1, 4) and masks["down"].shape == (4, 1) and masks["out"] is True
    for name in ("up", "down"):
        np.testing.assert_array_equal(np.ravel(masks[name]), masks["b"])
    return np.flatnonzero(masks["b"]).tolist()


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize(("sparsity", "kept"), [(0.25, [0, 1, 3]), (0.5, [0, 1]), (0.75, [0])])
def test_a_unit_is_a_slice_of_every_member_and_its_score_their_sum(groups, scope, sparsity, kept):
    structure = jp.Coupled(groups)
    masks = jp.make_masks(PARAMS, sparsity, scope, structure)
    assert kept_units(masks) == kept
    traced = jax.jit(lambda s: jp.make_masks(PARAMS, s, scope, structure))(sparsity)
    assert all(bool(jnp.all(a == b)) for a, b in zip(*map(jax.tree.leaves, (masks, traced)), strict=True))


def test_minimum_exclude_and_round_to(groups):
    with pytest.raises(ValueError, match="`minimum` keeps 1 of 4 units in all, but `sparsity` prunes 4"):
        jp.make_masks(PARAMS, 0.9, structure=jp.Coupled(groups))
    with pytest.raises(ValueError, match=r"`minimum` asks for 3 of the 4 units at 'b\[0\]'"):
        jp.make_masks(PARAMS, 0.5, "local", jp.Coupled(groups, minimum=3))
    with pytest.raises(ValueError, match="`minimum` keeps 2 of 4 units"):
        jp.make_masks(PARAMS, 0.75, structure=jp.Coupled(groups, minimum=0.5))
    stopped = jax.jit(lambda s: jp.make_masks(PARAMS, s, structure=jp.Coupled(groups)))(0.99)
    assert kept_units({**stopped, "out": True}) == [0]
    assert kept_units(jp.make_masks(PARAMS, 0.75, structure=jp.Coupled(groups, round_to=2))) == [0, 1]
    rounded = jp.make_masks(PARAMS, 0.25, structure=jp.Coupled(groups, round_to=3))
    assert kept_units(rounded) == [0, 1, 3]
    with pytest.raises(ValueError, match="`groups` has no group to prune"):
        jp.Coupled(groups, exclude="up")
    with pytest.raises(ValueError, match="`exclude` pattern 'nothing' matched no group"):
        jp.Coupled(groups, exclude=("nothing",))


def test_excluded_groups_and_those_of_leaves_that_where_leaves_out_keep_their_units():
    fn, params, inputs = MODELS["residual CNN"]()
    groups = jp.find_groups(fn, params, *inputs)
    inner = next(group for group in groups if group.size == 6)
    masks = jp.make_masks(params, 0.5, structure=jp.Coupled(groups, exclude=inner.name), minimum=0)
    plan = jp.plan_from_masks(groups, masks)
    assert [plan.small_shapes[name][-1] for name in ("k1", "k2")] == [6, 4]
    where = jax.tree.map(lambda _: True, params) | {"head": False}  # only units of the stream reach the head
    masks = jp.make_masks(params, 0.5, structure=jp.Coupled(groups), where=where)
    plan = jp.plan_from_masks(groups, masks)
    assert [plan.small_shapes[name][-1] for name in ("k1", "k2")] == [3, 8]


def test_an_allocation_may_name_the_groups(groups):
    structure = jp.Coupled(groups)
    assert kept_units(jp.make_masks(PARAMS, {"b[0]": 0.5}, structure=structure)) == [0, 1]
    traced = jax.jit(lambda s: jp.make_masks(PARAMS, {"b[0]": s}, structure=structure)["b"])(0.5)
    assert np.flatnonzero(traced).tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"`sparsity` must be in \[0, 1\), got 50 at 'b\[0\]'"):
        jp.make_masks(PARAMS, {"b[0]": 50}, structure=structure)


def test_what_is_wrong_is_told(groups):
    structure = jp.Coupled(groups)
    with pytest.raises(TypeError, match=r"`groups` must be what jp\.find_groups"):
        jp.Coupled([1, 2])
    with pytest.raises(ValueError, match="`minimum` must be at least 1"):
        jp.Coupled(groups, minimum=0)
    with pytest.raises(ValueError, match="`round_to` must be a positive whole number"):
        jp.Coupled(groups, round_to=0)
    with pytest.raises(ValueError, match="lacks 'down'"):
        jp.make_masks({k: v for k, v in PARAMS.items() if k != "down"}, 0.5, structure=structure)
    with pytest.raises(ValueError, match=r"\(4,\) at 'b', got \(3,\)"):
        jp.make_masks({**PARAMS, "b": jnp.ones(3)}, 0.5, structure=structure)
    with pytest.raises(ValueError, match="`where` leaves out 'b'"):
        jp.make_masks(PARAMS, 0.5, structure=structure, where=jp.prunable(PARAMS))
    with pytest.raises(ValueError, match="1 NaN and 0 -inf of 4 at 'b'"):
        jp.make_masks({**PARAMS, "b": PARAMS["b"].at[0].set(jnp.nan)}, 0.5, structure=structure)
    assert repr(structure) == "Coupled(1 groups of 4 units)" and hash(structure) == hash(jp.Coupled(groups))


def test_statistics_that_the_optimizer_does_not_hold_are_not_missed():
    def fn(variables, x):
        p, mean = variables["params"], variables["batch_stats"]["bn"]["mean"]
        return jnp.tanh(x @ p["up"] - mean) @ p["down"]

    params = {"up": PARAMS["up"], "down": PARAMS["down"]}
    variables = {"params": params, "batch_stats": {"bn": {"mean": PARAMS["b"]}}}
    groups = jp.find_groups(fn, variables, X)
    assert "batch_stats/bn/mean" in {member.path for group in groups for member in group.members}
    masks = jp.make_masks(params, 0.5, structure=jp.Coupled(groups))
    plan = jp.plan_from_masks(groups, masks)
    assert plan.shrink(variables)["batch_stats"]["bn"]["mean"].shape == (2,)


SCALES = [1.0, 1e-42, 3e38, 2.0**-149]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("engine", ["host", "compiled"])
def test_equal_units_tie_at_every_scale_and_the_first_ones_are_pruned(dtype, engine):
    rng = np.random.default_rng(0)
    width = 13
    column = jnp.asarray(rng.uniform(0.5, 1.0, (37, 1)), dtype)
    row = jnp.asarray(rng.uniform(0.5, 1.0, (1, 29)), dtype)
    params = {"up": jnp.tile(column, (1, width)), "down": jnp.tile(row, (width, 1))}
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 37), dtype))
    (group,) = groups
    cut = coupled_units(groups, [0], ["down", "up"])
    for scale in SCALES if dtype == "float32" else SCALES[:1]:
        leaves = [np.asarray(params[name]) * np.asarray(scale, dtype) for name in ("down", "up")]
        if engine == "compiled":
            (sums,) = jax.jit(cut.scores)(list(map(jnp.asarray, leaves)))
        else:
            (sums,) = cut.scores(leaves)
        assert sums.dtype == jnp.float32 and sums.shape == (group.size,)
        bits = np.asarray(sums).view(np.int32)
        assert np.all(bits == bits[0]) and bits[0] > 0
        exact = sum(np.float64(leaf.astype(np.float64)).sum() for leaf in leaves) / width
        if exact < np.finfo(np.float32).max:
            np.testing.assert_allclose(np.float64(np.asarray(sums)[0]), exact, rtol=1e-6, atol=2.0**-149)
        else:
            assert np.isfinite(np.asarray(sums)).all()
    masks = jp.make_masks(params, 6 / 13, structure=jp.Coupled(groups))
    np.testing.assert_array_equal(np.ravel(masks["up"]), np.arange(13) >= 6)


@pytest.mark.parametrize("on_host", [True, False])
def test_infinite_scores_keep_and_nan_comes_first(groups, on_host):
    cut = coupled_units(groups, [0], ["up"])
    inf, nan = np.inf, np.nan
    scores = np.array([[inf, -inf, nan, 1.0], [-inf, 1.0, inf, 2.0]], np.float32)
    (sums,) = cut.scores([scores]) if on_host else jax.jit(cut.scores)([jnp.asarray(scores)])
    np.testing.assert_array_equal(sums, np.float32([inf, -inf, nan, 3.0]))


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("name", TRAINED)
def test_counts_are_exact_and_shrinking_is_what_the_masked_function_computes(name, scope):
    fn, params, inputs = MODELS[name]()
    groups = jp.find_groups(fn, params, *inputs)
    masks = jp.make_masks(jp.scores.magnitude(params), 0.4, scope, jp.Coupled(groups))
    plan = jp.plan_from_masks(groups, masks)
    sizes = {group.name: group.size for group in groups}
    cut = coupled_units(groups, range(len(groups)), [leaf.path for leaf in leaves_of(params)])
    units = cut.pruned(
        [np.asarray(mask) if hasattr(mask, "dtype") else None for mask in jax.tree.leaves(masks)]
    )
    lost = {group.name: 0 if u is None else int(u.sum()) for group, u in zip(groups, units, strict=True)}
    if scope == "global":
        assert sum(lost.values()) == round(0.4 * sum(sizes.values()))
    else:
        assert lost == {name: round(0.4 * size) for name, size in sizes.items()}
    small = jax.jit(plan.compact(fn))(plan.shrink(params), *inputs)
    masked = jax.jit(jp.masked_fn(fn, groups))(params, masks, *inputs)
    assert difference(small, masked) < 1e-5


def test_gradual_zeroes_whole_units_and_its_masks_make_a_plan(groups):
    tx = jp.gradual(
        optax.sgd(0.0), jp.schedules.iterative(0.5, rounds=2), score=lambda p: p, structure=jp.Coupled(groups)
    )
    params, state, seen = PARAMS, tx.init(PARAMS), []
    update = jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(PARAMS, state, params)
        params = optax.apply_updates(params, updates)
        masks = jp.get_masks(state)
        seen.append(np.flatnonzero(masks["b"]).tolist())
    assert seen == [[0, 1, 3], [0, 1]]
    assert not params["up"][:, 2:].any() and not params["down"][2:].any() and params["out"] == 1
    plan = jp.plan_from_masks(groups, masks)
    assert plan.shrink(params)["up"].shape == (2, 2)
    assert jax.tree.leaves(plan.shrink_opt_state(state.inner_state)) == jax.tree.leaves(state.inner_state)
    np.testing.assert_allclose(plan.compact(unit)(plan.shrink(params), X), unit(params, X), rtol=1e-6)


@pytest.mark.slow
def test_imp_and_pruning_at_initialization_take_coupled_units(groups):
    def train_step(state, batch):
        del batch
        return state, {}

    structure = jp.Coupled(groups)
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=jp.masked(optax.sgd(0.0)))
    experiment = jp.imp(
        train_step, lambda key, step: step, steps=1, rounds=2, rate=0.5, structure=structure, keep_masks=True
    )
    trained, history = jax.jit(experiment.run)(jax.random.key(0), state)
    rows = [np.flatnonzero(row).tolist() for row in history.masks["b"]]
    assert rows == [[0, 1, 2, 3], [0, 1], [0]] and not trained.params["down"][1:].any()
    last = jax.tree.map(lambda mask: mask[-1], history.masks)
    assert jp.plan_from_masks(groups, last).small_shapes["up"] == (2, 1)
    masks = jp.prune_at_init(lambda params: params, PARAMS, 0.5, 3, structure=structure)
    assert kept_units(masks) == [0, 1]


@pytest.mark.slow
def test_vmapped_scanned_and_sharded_masks_are_those_of_one_array(groups):
    structure = jp.Coupled(groups)

    def masks_of(params):
        return jp.make_masks(params, jnp.float32(0.5), structure=structure)["b"]

    stacked = jax.tree.map(
        lambda x: jnp.stack([x, x[..., ::-1]]) if x.ndim == 1 else jnp.stack([x, x]), PARAMS
    )
    expected = [masks_of(jax.tree.map(lambda x, i=i: x[i], stacked)) for i in range(2)]
    np.testing.assert_array_equal(jax.vmap(masks_of)(stacked), np.stack(expected))
    scanned = jax.lax.scan(lambda carry, params: (carry, masks_of(params)), 0, stacked)[1]
    np.testing.assert_array_equal(scanned, np.stack(expected))
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    specs = {"up": P("d", None), "b": P("d"), "down": P("d", None), "out": P()}
    placed = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in PARAMS.items()}
    np.testing.assert_array_equal(masks_of(placed), masks_of(PARAMS))
    big = {**placed, "up": jax.device_put(jnp.ones((64, 4)), NamedSharding(mesh, P("d", None)))}
    cut = coupled_units(groups, [0], sorted(big))
    text = jax.jit(cut.scores).lower([big[name] for name in sorted(big)]).compile().as_text()
    gathered = [line for line in text.splitlines() if " all-gather" in line]
    assert not any("[64,4]" in line for line in gathered), gathered


SPARSE = {
    "ste": lambda tx, s: jp.sparse_training.ste(tx, 0.5, structure=s),
    "rigl": lambda tx, s: jp.sparse_training.rigl(
        tx, 0.5, every=1, end=9, structure=s, key=jax.random.key(0)
    ),
    "set": lambda tx, s: jp.sparse_training.set(tx, 0.5, every=1, end=9, structure=s, key=jax.random.key(0)),
    "movement": lambda tx, s: jp.sparse_training.movement(tx, jp.schedules.constant(0.5), structure=s),
    "ac_dc": lambda tx, s: jp.sparse_training.ac_dc(tx, 0.5, begin=0, end=3, every=1, structure=s),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("method", SPARSE)
def test_sparse_training_moves_whole_units(method, groups):
    tx = SPARSE[method](optax.sgd(0.01), jp.Coupled(groups))

    @jax.jit
    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: jnp.sum(unit(p, X) ** 2))(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (_, state), _ = jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=3)
    assert jp.plan_from_masks(groups, jp.get_masks(state)).small_shapes["up"] == (2, 2)


def test_sensitivity_has_a_row_for_each_group_and_makes_an_allocation():
    fn, params, inputs = MODELS["residual CNN"]()
    groups = jp.find_groups(fn, params, *inputs)
    structure = jp.Coupled(groups)

    def loss(params, batch):
        return jnp.mean(jnp.square(fn(params, *batch) - 1.0))

    grid = (0.25, 0.5, 0.75)
    table = jp.sensitivity(loss, params, inputs, sparsities=grid, structure=structure)
    assert table.paths == tuple(group.name for group in groups)
    assert table.units == tuple(group.size for group in groups)
    scores = jp.scores.magnitude(params)
    for row, group in enumerate(groups):
        for column, share in enumerate(grid):
            alone = {other.name: share if other.name == group.name else 0.0 for other in groups}
            masks = jp.make_masks(scores, alone, structure=structure)
            np.testing.assert_allclose(
                table.losses[row, column], loss(jp.apply_masks(params, masks), inputs), rtol=1e-5
            )
            if share == 0.5:
                lost = jp.plan_from_masks(groups, masks)
                left = sum(w.size for w in jax.tree.leaves(lost.shrink(params)))
                whole = sum(w.size for w in jax.tree.leaves(params))
                assert whole - left == round(0.5 * table.weights[row])
    shares = jp.allocate.from_sensitivity(table, 0.4)
    assert set(shares) == set(table.paths)
    kept = jp.plan_from_masks(groups, jp.make_masks(scores, shares, structure=structure)).small_shapes
    expected = {group.size: group.size - round(shares[group.name] * group.size) for group in groups}
    assert (kept["k1"][-1], kept["k2"][-1]) == (expected[6], expected[8])
    assert jp.Sensitivity.from_json(table.to_json()).paths == table.paths
    schedule = jp.schedules.linear(shares, begin=0, end=2, every=1)
    tx = jp.gradual(optax.sgd(0.0), schedule, structure=structure)
    state = tx.init(params)
    for _ in range(3):
        _, state = jax.jit(tx.update)(params, state, params)
    assert jp.plan_from_masks(groups, jp.get_masks(state)).small_shapes["k1"] == kept["k1"]


@pytest.mark.parametrize("chunk", [1, 2])
def test_sensitivity_keeps_the_minimum_of_each_group(groups, chunk):
    table = jp.sensitivity(
        lambda p, x: jnp.sum(p["b"] > -1) + jnp.sum(p["up"][0]),
        PARAMS,
        X,
        sparsities=(0.25, 0.5, 0.99),
        structure=jp.Coupled(groups, minimum=2),
        chunk=chunk,
    )
    np.testing.assert_allclose(table.losses, [[11.0, 7.0, 7.0]])  # units 2 and 3 have 3 and 4 in `up`


def unit_norms(params):
    return [
        np.linalg.norm(np.float64([*params["up"][:, i], params["b"][i], *params["down"][i]]))
        for i in range(4)
    ]


def test_group_penalty_is_that_of_the_slices_of_all_members(groups):
    structure = jp.Coupled(groups)
    penalty = jp.sparse_training.group_penalty(PARAMS, structure)
    np.testing.assert_allclose(penalty, 2 * sum(unit_norms(PARAMS)), rtol=1e-6)
    gradient = jax.grad(jp.sparse_training.group_penalty)(PARAMS, structure)
    for name, column in (("up", PARAMS["up"]), ("down", PARAMS["down"].T), ("b", PARAMS["b"])):
        expected = 2 * np.asarray(column) / unit_norms(PARAMS)
        found = gradient[name].T if name == "down" else gradient[name]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not gradient["out"].any()
    zeros = jax.grad(jp.sparse_training.group_penalty)(jax.tree.map(jnp.zeros_like, PARAMS), structure)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(zeros))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_group_lasso_shrinks_units_and_prunes_those_of_small_norm(groups, dtype):
    params = jax.tree.map(lambda w: w.astype(dtype), PARAMS)
    tx = jp.sparse_training.group_lasso(
        optax.set_to_zero(), 1.0, learning_rate=1.7, structure=jp.Coupled(groups)
    )
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    new, masks, norms = optax.apply_updates(params, updates), jp.get_masks(state), unit_norms(params)
    kept = [i for i, norm in enumerate(norms) if norm > 3.4]  # sqrt(4) * 1.7
    assert kept == kept_units({**masks, "out": True}) == [0, 1, 3]
    factors = [max(0, 1 - 3.4 / norm) for norm in norms]
    for name, of in (("up", np.array([factors])), ("down", np.array([factors]).T), ("b", np.array(factors))):
        wanted = np.float32(params[name]) * of
        np.testing.assert_allclose(np.float32(new[name]), wanted, rtol=1e-6 if dtype == "float32" else 0.02)
    assert not new["up"][:, 2].any() and not new["down"][2].any() and new["out"] == 1
    assert jp.plan_from_masks(groups, masks).small_shapes["up"] == (2, 3)


def test_group_lasso_keeps_the_minimum_and_multiples_and_does_not_hide_nan(groups):
    for options, kept in (({}, [0]), ({"minimum": 2}, [0, 3]), ({"round_to": 4}, [0, 1, 2, 3])):
        tx = jp.sparse_training.group_lasso(
            optax.set_to_zero(), 1.0, learning_rate=9.0, structure=jp.Coupled(groups, **options)
        )
        updates, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        assert kept_units({**jp.get_masks(state), "out": True}) == kept
        new = optax.apply_updates(PARAMS, updates)
        np.testing.assert_allclose(new["up"][:, kept], PARAMS["up"][:, kept])  # kept though small: as it was
    broken = {**PARAMS, "b": PARAMS["b"].at[3].set(jnp.nan)}
    updates, state = tx.update(broken, tx.init(broken), broken)
    assert jnp.isnan(optax.apply_updates(broken, updates)["b"][3]) and jp.get_masks(state)["b"][3]


@pytest.mark.slow
def test_group_lasso_trains_units_away():
    fn, params, inputs = MODELS["residual CNN"]()
    groups = jp.find_groups(fn, params, *inputs)
    structure = jp.Coupled(groups)
    tx = jp.sparse_training.group_lasso(optax.adam(1e-3), 1.0, learning_rate=0.01, structure=structure)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: jnp.mean(jnp.square(fn(p, *inputs) - 1)))(params)
        gradient = {name: 0 * g if name.endswith(("mean", "var")) else g for name, g in gradient.items()}
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jp.sparse_training.group_penalty(params, structure)

    (trained, state), penalties = jax.jit(lambda c: jax.lax.scan(step, c, length=60))(
        (params, tx.init(params))
    )
    assert penalties[-1] < 0.7 * penalties[0]
    masks = jp.get_masks(state)
    plan = jp.plan_from_masks(groups, masks)
    assert jp.sparsity(params, masks) > 0
    assert all(
        bool(jnp.all(jnp.where(m, 0, w) == 0))
        for w, m in zip(*map(jax.tree.leaves, (trained, masks)), strict=True)
    )
    assert plan.shrink(trained)["k1"].size < params["k1"].size


def test_in_an_allocation_a_group_takes_the_share_of_its_first_weight(groups):
    shares = {"b": 0.0, "up": 0.5, "down": 0.25, "out": 0.5}  # an allocation has 0 for biases
    assert kept_units(jp.make_masks(PARAMS, shares, structure=jp.Coupled(groups))) == [0, 1, 3]


def test_a_structure_can_be_replaced_in_a_recipe(groups):
    recipe = jp.recipes.one_shot(0.5, structure=jp.Coupled(groups))
    assert "Coupled(1 groups of 4 units)" in str(recipe)
    assert dataclasses.replace(recipe, structure=jp.Coupled(groups, minimum=2)).structure.minimum == 2
