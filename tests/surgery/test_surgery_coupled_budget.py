"""Budgets of coupled units: the fewest units that reach a share of the parameters or FLOPs, in training as in plans."""

import jax
import jax.export
import jax.numpy as jnp
import library_models
import numpy as np
import optax
import plain_models
import pytest
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st
from test_surgery_coupled import PARAMS, X, unit

import jaxprune as jp
from jaxprune.selection import counts
from jaxprune.selection.counts import Count
from jaxprune.surgery.coupled_units import coupled_units
from jaxprune.surgery.unit_cost import unit_cost
from jaxprune.tree_nodes import leaves_of

MODELS = {**plain_models.MODELS, **library_models.MODELS}
CHOSEN = ["residual CNN", "llama", "DenseNet", "Linen LM (remat, scan, tied)"]
OPTIONS = [{}, {"minimum": 2, "round_to": 2}, {"exclude": 0}]


def found(name):
    fn, params, inputs = MODELS[name]()
    return params, jp.find_groups(fn, params, *inputs)


def kept_counts(groups, masks):
    leaves = leaves_of(masks)
    cut = coupled_units(groups, range(len(groups)), [leaf.path for leaf in leaves])
    lost = cut.pruned([np.asarray(leaf.value) if hasattr(leaf.value, "dtype") else None for leaf in leaves])
    return [
        group.size - int(0 if units is None else np.sum(units))
        for group, units in zip(groups, lost, strict=True)
    ]


def equal(a, b):
    return all(bool(jnp.all(x == y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "rounded", "excluded"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("budget", ["params", "flops"])
@pytest.mark.parametrize("name", CHOSEN)
def test_masks_are_those_of_plan_removal_on_the_host_and_compiled(name, budget, scope, options):
    params, groups = found(name)
    options = {
        key: groups.groups[value].name if key == "exclude" else value for key, value in options.items()
    }
    structure = jp.Coupled(groups, budget=budget, **options)
    scores = jp.scores.magnitude(params)
    compiled = jax.jit(lambda s: jp.make_masks(scores, s, scope, structure))
    for sparsity in (0.0, 0.1, 0.3, 0.45):

        def plan_of(sparsity=sparsity):
            more = {**options, "budget": budget, "normalize": None}
            return jp.plan_removal(groups, params, sparsity, scope, score=scores, **more)

        try:
            plan = plan_of()
        except ValueError:
            with pytest.raises(ValueError, match="can't be reached"):
                jp.make_masks(scores, sparsity, scope, structure)
            continue
        masks = jp.make_masks(scores, sparsity, scope, structure)
        assert equal(masks, compiled(sparsity))
        found_here, of_plan = (kept_counts(groups, m) for m in (masks, plan.masks(params)))
        # Where all units cost the same, a plan rounds their number.
        assert equal(masks, plan.masks(params)) or (
            sum(of_plan) - sum(found_here) == 1 and "exclude" in options
        )


@pytest.mark.parametrize("budget", ["params", "flops"])
def test_by_hand_the_first_unit_that_reaches_the_share(budget):
    """Each unit has 4 of 17 parameters, and 3 x 2 of the multiplications of 4 x 3 x 3 are its own."""
    groups = jp.find_groups(unit, PARAMS, X)
    structure = jp.Coupled(groups, budget=budget)
    for engine in (lambda f: f, jax.jit):
        run = engine(lambda s: jp.make_masks(PARAMS, s, structure=structure)["b"])
        kept = [int(run(s).sum()) for s in (0.0, 0.01, 0.23, 0.24, 0.47, 0.48)]
        # round(s * 17) parameters: 0, 0, 4, 4, 8, 8; of 72 FLOPs a unit has 18: 0, 1, 17, 17, 34, 35
        assert kept == ([4, 4, 3, 3, 2, 2] if budget == "params" else [4, 3, 3, 3, 2, 2])


def test_one_unit_fewer_does_not_reach_it():
    params, groups = found("residual CNN")
    numbers = {group.atom: i for i, group in enumerate(groups)}
    cost = unit_cost(groups, numbers, "params")
    structure = jp.Coupled(groups, budget="params")
    scores = jp.scores.random(params, jax.random.key(0))
    for sparsity in np.linspace(0.02, 0.7, 15):
        masks = jp.make_masks(scores, float(sparsity), structure=structure)
        kept = kept_counts(groups, masks)
        assert cost.whole - cost.known(kept) >= round(sparsity * cost.whole)
        more = [
            cost.whole - cost.known([n + (i == j) for j, n in enumerate(kept)]) < round(sparsity * cost.whole)
            for i, n in enumerate(kept)
            if n < groups.groups[i].size
        ]
        assert any(more)  # the last unit was needed


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**40), st.integers(0, 2**23))
def test_products_of_counts_are_exact(a, n):
    assert int(counts.times(Count.of(a), jnp.uint32(n))) == a * n


def test_the_cost_of_units_is_exact_beyond_32_bits():
    params = {"up": jax.ShapeDtypeStruct((50_021, 40_009), jnp.float32)}
    params["down"] = jax.ShapeDtypeStruct((40_009, 70_001), jnp.float32)
    x = jax.ShapeDtypeStruct((513, 50_021), jnp.float32)
    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, x)
    for kind, per_unit in (("params", 50_021 + 70_001), ("flops", 2 * 513 * (50_021 + 70_001))):
        cost = unit_cost(groups, {groups.groups[0].atom: 0}, kind)
        assert cost.whole == 40_009 * per_unit
        assert int(jax.jit(cost.traced)(jnp.array([12_345], jnp.int32))) == 12_345 * per_unit


def test_gradual_reaches_its_budget_in_a_compiled_loop():
    params, groups = found("residual CNN")
    structure = jp.Coupled(groups, budget="params")
    schedule = jp.schedules.linear(0.5, begin=0, end=4, every=1)
    scores = jp.scores.magnitude(params)
    tx = jp.gradual(optax.sgd(0.0), schedule, score=lambda params: scores, structure=structure)

    def step(state, _):
        _, state = tx.update(params, state, params)
        return state, jp.get_masks(state)

    _, history = jax.jit(lambda s: jax.lax.scan(step, s, length=6))(tx.init(params))
    last = jax.tree.map(lambda mask: mask[-1], history)
    assert equal(last, jp.make_masks(scores, 0.5, structure=structure))
    plan = jp.plan_from_masks(groups, last)
    whole = sum(w.size for w in jax.tree.leaves(params))
    assert sum(w.size for w in jax.tree.leaves(plan.shrink(params))) <= 0.5 * whole


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "local"])
def test_imp_prunes_to_its_budgets_round_by_round_also_vmapped(scope):
    params, groups = found("residual CNN")
    structure = jp.Coupled(groups, budget="flops")
    state = TrainState.create(apply_fn=None, params=params, tx=jp.masked(optax.sgd(0.0)))
    scores = jp.scores.magnitude(params)
    experiment = jp.imp(
        lambda state, batch: (state, {}),
        lambda key, step: step,
        steps=1,
        rounds=3,
        rate=0.2,
        score=lambda params: scores,
        scope=scope,
        structure=structure,
        keep_masks=True,
    )
    _, history = jax.jit(experiment.run)(jax.random.key(0), state)
    shares = [0.0, 0.2, 0.36, 0.488]
    rows = [jax.tree.map(lambda mask, r=r: mask[r], history.masks) for r in range(4)]
    for row, share in zip(rows, shares, strict=True):
        assert equal(row, jp.make_masks(scores, share, scope, structure=structure))
    keys = jax.random.split(jax.random.key(1), 2)
    _, both = jax.jit(jax.vmap(experiment.run, in_axes=(0, None)))(keys, state)
    assert equal(jax.tree.map(lambda mask: mask[1], both.masks), history.masks)


def test_what_was_pruned_before_counts():
    params, groups = found("residual CNN")
    structure = jp.Coupled(groups, budget="params")
    other = jp.make_masks(jp.scores.random(params, jax.random.key(3)), 0.3, structure=structure)
    for engine in (lambda f: f, jax.jit):
        run = engine(
            lambda s: jp.make_masks(jp.scores.magnitude(params), s, structure=structure, prior=other)
        )
        assert equal(run(0.2), other)
        more = run(0.5)
        assert all(
            not bool(jnp.any(m & ~o)) for m, o in zip(*map(jax.tree.leaves, (more, other)), strict=True)
        )
        small = jp.plan_from_masks(groups, more).shrink(params)
        left = sum(w.size for w in jax.tree.leaves(small)) / sum(w.size for w in jax.tree.leaves(params))
        assert 0.4 < left <= 0.5


def test_dynamic_training_keeps_its_budget():
    params, groups = found("residual CNN")
    structure = jp.Coupled(groups, budget="params")
    tx = jp.sparse_training.set(
        optax.sgd(0.1), 0.5, every=1, end=9, structure=structure, key=jax.random.key(0)
    )
    state, sizes = tx.init(params), []
    for _ in range(3):
        plan = jp.plan_from_masks(groups, jp.get_masks(state))
        sizes.append(sum(w.size for w in jax.tree.leaves(plan.shrink(params))))
        _, state = jax.jit(tx.update)(params, state, params)
    assert len(set(sizes)) == 1 and sizes[0] <= 0.5 * sum(w.size for w in jax.tree.leaves(params))


def test_what_is_wrong_is_told():
    groups = jp.find_groups(unit, PARAMS, X)
    with pytest.raises(ValueError, match=r"`budget` must be one of 'units', 'params', 'flops', got 'bytes'"):
        jp.Coupled(groups, budget="bytes")
    structure = jp.Coupled(groups, budget="params")
    assert repr(structure) == "Coupled(1 groups of 4 units, budget='params')"
    for scope in ("global", "local"):
        with pytest.raises(
            ValueError, match=r"`sparsity` 0.8 of the params can't be reached: .* at most 0.7058"
        ):
            jp.make_masks(PARAMS, 0.8, scope, structure)
        with pytest.raises(ValueError, match=r"at most 0\.4705"):
            jp.make_masks(PARAMS, 0.6, scope, jp.Coupled(groups, budget="params", minimum=2))
        stopped = jax.jit(lambda s, scope=scope: jp.make_masks(PARAMS, s, scope, structure)["b"])(0.8)
        assert stopped.tolist() == [True, False, False, False]
    with pytest.raises(ValueError, match="`sparsity` must be one number with budget='params'"):
        jp.make_masks(PARAMS, dict.fromkeys(PARAMS, 0.5), structure=structure)
    (batch,) = jax.export.symbolic_shape("b")
    symbolic = jp.find_groups(unit, PARAMS, jax.ShapeDtypeStruct((batch, 2), jnp.float32))
    assert jp.make_masks(PARAMS, 0.4, structure=jp.Coupled(symbolic, budget="params"))["b"].sum() == 2
    with pytest.raises(ValueError, match="`budget` needs known sizes"):
        jp.make_masks(PARAMS, 0.4, structure=jp.Coupled(symbolic, budget="flops"))
    with pytest.raises(ValueError, match="can't be reached"):
        jp.gradual(optax.sgd(0.1), jp.schedules.constant(0.8), structure=structure).init(PARAMS)
