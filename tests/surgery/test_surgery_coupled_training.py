"""Every way of training with coupled units: masks are whole units of exact number, and make a plan."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from jaxprune import sparse_training as st

STEPS = 24
WIDTHS = (24, 16)


def fresh(key, dtype=jnp.float32):
    keys = jax.random.split(key, 3)
    return {
        "first": {"kernel": (jax.random.normal(keys[0], (8, 24)) / 3).astype(dtype), "bias": jnp.zeros(24, dtype)},
        "second": [(jax.random.normal(keys[1], (24, 16)) / 5).astype(dtype), jnp.zeros((16,), dtype)],
        "third": ((jax.random.normal(keys[2], (16, 4)) / 4).astype(dtype),),
        "nothing": None,
    }  # fmt: skip


def fn(params, x):
    h = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
    weight, bias = params["second"]
    return jnp.tanh(h @ weight + bias) @ params["third"][0]


def loss_fn(params, batch):
    return jnp.mean((fn(params, batch) - jnp.sin(3 * batch[:, :4])) ** 2)


def batch_fn(key, step):
    return jax.random.normal(jax.random.fold_in(key, step), (32, 8))


GROUPS = jp.find_groups(fn, fresh(jax.random.key(0)), jnp.ones((1, 8)))
COUPLED = jp.Coupled(GROUPS)


def kept_of(masks):
    """The kept units of both hidden layers, from a plan: it refuses units that are masked in part."""
    shapes = jp.plan_from_masks(GROUPS, masks).small_shapes
    assert shapes["first/kernel"][1] == shapes["second/0"][0] == shapes["first/bias"][0]
    assert shapes["second/0"][1] == shapes["second/1"][0] == shapes["third/0"][0]
    return shapes["second/0"]


def check(params, masks, units, held=True):
    """Counts, whole units, exact zeros, and that the small function computes what the masked one does."""
    kept = kept_of(masks)
    assert sum(WIDTHS) - sum(kept) == units, kept
    zeroed = jp.apply_masks(params, masks)
    if held:
        assert all(
            bool(jnp.all(a == b)) for a, b in zip(*map(jax.tree.leaves, (params, zeroed)), strict=True)
        )
    plan, x = jp.plan_from_masks(GROUPS, masks), batch_fn(jax.random.key(1), 0)
    np.testing.assert_allclose(plan.compact(fn)(plan.shrink(zeroed), x), fn(zeroed, x), atol=1e-5)


def train(tx, params, steps=STEPS, through=None):
    """A user's loop as one program; `through` gives the weights that the loss sees."""

    def step(carry, number):
        params, state = carry

        def loss(params):
            seen = params if through is None else through(params, jp.get_masks(state))
            return loss_fn(seen, batch_fn(jax.random.key(7), number))

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = params, tx.init(params)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))(carry)[0]


HALF = sum(WIDTHS) // 2
KEY = jax.random.key(5)
# Name -> (optax wrapper, units that it prunes, whether weights are zero while training).
WRAPPERS = {
    "gradual": (
        lambda tx: jp.gradual(tx, jp.schedules.cubic(0.5, begin=0, end=12, every=3), structure=COUPLED), 20, True,
    ),
    "static": (lambda tx: st.static(tx, 0.5, structure=COUPLED, key=KEY), 20, True),
    "set": (lambda tx: st.set(tx, 0.5, every=3, end=18, structure=COUPLED, key=KEY), 20, True),
    "rigl": (lambda tx: st.rigl(tx, 0.5, every=3, end=18, structure=COUPLED, key=KEY), 20, True),
    "ac_dc": (lambda tx: st.ac_dc(tx, 0.5, begin=2, end=20, every=4, structure=COUPLED), 20, True),
    "movement": (lambda tx: st.movement(tx, jp.schedules.linear(0.5, begin=0, end=12), structure=COUPLED), 20, True),
    "movement that regrows": (
        lambda tx: st.movement(tx, jp.schedules.constant(0.5), regrow=True, structure=COUPLED), 20, False,
    ),
    "ste": (lambda tx: st.ste(tx, 0.5, structure=COUPLED), 20, False),
    "ste with decay, by group": (lambda tx: st.ste(tx, 0.25, decay=1e-3, scope="local", structure=COUPLED), 10, False),
    "top_kast": (lambda tx: st.top_kast(tx, 0.5, backward_sparsity=0.25, structure=COUPLED), 20, False),
    "top_kast, global": (
        lambda tx: st.top_kast(tx, 0.5, backward_sparsity=0.25, scope="global", structure=COUPLED), 20, False,
    ),
}  # fmt: skip


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_every_wrapper_prunes_whole_units_of_exact_number(name, dtype):
    make, units, held = WRAPPERS[name]
    through = None if held else st.straight_through
    params, state = train(make(optax.adam(1e-2)), fresh(KEY, jnp.dtype(dtype)), through=through)
    if dtype == "float32":
        check(params, jp.get_masks(state), units, held)
    else:
        assert sum(WIDTHS) - sum(kept_of(jp.get_masks(state))) == units
    if name == "top_kast":
        assert kept_of(state.backward_masks) == (18, 12)


def test_sr_ste_and_slimming_say_that_their_units_are_others():
    with pytest.raises((TypeError, ValueError), match=r"`structure` must be .*NM"):
        st.sr_ste(optax.sgd(0.1), COUPLED)
    with pytest.raises(TypeError, match="structure"):
        st.slimming(optax.sgd(0.1), 0.1, structure=COUPLED)


# Name -> units that are pruned at 0.5; None where an allocation or a minimum decides.
RECIPES = {
    "ac_dc": 20, "gmp": 20, "grasp": 20, "group_lasso": 20, "imp": 20, "lamp": 20, "magnitude_at_init": 20,
    "minimum_keep": 20, "one_shot": 20, "rigl": None, "set": None, "snip": 20, "static": None, "synflow": 20,
}  # fmt: skip


def test_all_recipes_are_in_the_table():
    made = {name for name in jp.recipes.__all__ if name[0].islower()}
    assert made == {*RECIPES}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_coupled_units(name):
    recipe = dataclasses.replace(getattr(jp.recipes, name)(0.5), structure=COUPLED)
    assert "Coupled(2 groups of 40 units)" in str(recipe)

    def train_step(state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
        return state.apply_gradients(grads=grads), {"loss": loss}

    experiment = recipe.experiment(
        train_step,
        batch_fn,
        steps=STEPS,
        loss_fn=loss_fn,
        fn=fn,
        inputs=(jnp.ones((1, 8)),),
        **({"batches": [batch_fn(KEY, 99)]} if name in ("snip", "grasp") else {}),
    )
    start = TrainState.create(apply_fn=None, params=fresh(KEY), tx=optax.adam(1e-2))
    state, _ = jax.jit(experiment.run)(jax.random.key(0), start)
    masks = jp.get_masks(state.opt_state)
    lost = sum(WIDTHS) - sum(kept_of(masks))
    assert lost == RECIPES[name] or (RECIPES[name] is None and 0 < lost < 30)
    check(state.params, masks, lost)


@pytest.mark.slow
def test_replicates_of_imp_are_single_runs_and_their_rounds_have_exact_counts():
    def train_step(state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
        return state.apply_gradients(grads=grads), {"loss": loss}

    experiment = jp.imp(
        train_step, batch_fn, steps=6, sparsities=(0.25, 0.5), structure=COUPLED, keep_masks=True,
        rewind=jp.Rewind(step=2),
    )  # fmt: skip

    def run(key):
        tx = jp.masked(optax.adam(1e-2))
        return experiment.run(key, TrainState.create(apply_fn=None, params=fresh(key), tx=tx))[1]

    keys = jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(run))(keys)
    for i in range(3):
        one = jax.jit(run)(keys[i])
        for row, units in enumerate((0, 10, 20)):
            masks = jax.tree.map(lambda mask, i=i, row=row: mask[i, row], together.masks)
            assert sum(WIDTHS) - sum(kept_of(masks)) == units
            same = jax.tree.map(lambda a, b, row=row: bool(jnp.all(a == b[row])), masks, one.masks)
            assert all(jax.tree.leaves(same))


@pytest.mark.slow
def test_masks_of_sharded_weights_are_those_of_whole_ones_and_keep_their_sharding():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    params = fresh(KEY)
    specs = {
        "first": {"kernel": P("d", None), "bias": P("d")},
        "second": [P(None, "d"), P("d")],
        "third": (P("d", None),),
        "nothing": None,
    }
    placed = jax.tree.map(lambda w, spec: jax.device_put(w, NamedSharding(mesh, spec)), params, specs)
    for budget in ("units", "params"):
        structure = jp.Coupled(GROUPS, budget=budget)
        for scope in ("global", "local"):
            tx = jp.gradual(
                optax.sgd(0.01),
                jp.schedules.linear(0.5, begin=0, end=2, every=1),
                scope=scope,
                structure=structure,
            )
            found = []
            for weights in (params, placed):
                state = tx.init(weights)
                for _ in range(3):
                    _, state = jax.jit(tx.update)(weights, state, weights)
                found.append(jp.get_masks(state))
            assert all(bool(jnp.all(a == b)) for a, b in zip(*map(jax.tree.leaves, found), strict=True))
            assert kept_of(found[1]) != WIDTHS


@pytest.mark.parametrize("engine", ["host", "compiled"])
def test_ties_nan_and_infinite_scores_in_a_tree_with_holes(engine):
    run = (lambda f: f) if engine == "host" else jax.jit
    ones = jax.tree.map(jnp.ones_like, fresh(KEY))
    masks = run(lambda s: jp.make_masks(ones, s, "local", COUPLED))(0.5)
    # All units of a group have the same score: the first ones are pruned.
    np.testing.assert_array_equal(masks["first"]["bias"], np.arange(24) >= 12)
    np.testing.assert_array_equal(masks["second"][1], np.arange(16) >= 8)
    keep = {**ones, "first": {**ones["first"], "bias": ones["first"]["bias"].at[:5].set(jnp.inf)}}
    masks = run(lambda s: jp.make_masks(keep, s, structure=COUPLED))(0.5)
    assert masks["first"]["bias"][:5].all() and sum(WIDTHS) - sum(kept_of(jax.device_get(masks))) == 20
    broken = {**ones, "first": {**ones["first"], "bias": ones["first"]["bias"].at[7].set(jnp.nan)}}
    if engine == "host":
        with pytest.raises(ValueError, match="1 NaN and 0 -inf of 24 at 'first/bias'"):
            jp.make_masks(broken, 0.5, structure=COUPLED)
    else:
        masks = run(lambda s: jp.make_masks(broken, s, structure=COUPLED))(0.025)
        assert np.flatnonzero(~masks["first"]["bias"]).tolist() == [7] and masks["second"][1].all()


@pytest.mark.parametrize("options", [{"minimum": 5}, {"minimum": 0.3, "round_to": 4}, {"exclude": "third"}])
@pytest.mark.parametrize("method", ["gradual", "ste", "top_kast"])
def test_options_hold_in_training(method, options):
    structure = jp.Coupled(GROUPS, **options)
    make = {
        "gradual": lambda: jp.gradual(optax.sgd(0.01), jp.schedules.constant(0.45), structure=structure),
        "ste": lambda: st.ste(optax.sgd(0.01), 0.45, structure=structure),
        "top_kast": lambda: st.top_kast(
            optax.sgd(0.01), 0.45, backward_sparsity=0.2, scope="global", structure=structure
        ),
    }[method]
    _, state = train(make(), fresh(KEY), steps=3)
    kept = kept_of(jp.get_masks(state))
    if "exclude" in options:
        assert kept == (24 - round(0.45 * 24), 16)
    elif "round_to" in options:
        assert all(n % 4 == 0 for n in kept) and sum(kept) >= 22 and kept[0] >= 8 and kept[1] >= 5
    else:
        assert sum(kept) == 22 and min(kept) >= 5
