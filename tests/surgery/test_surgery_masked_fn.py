"""The masked function under traced masks is the small one, in values and gradients, on every model."""

import jax
import jax.numpy as jnp
import library_models
import numpy as np
import optax
import plain_models
import pytest
from checks import difference, random_masks
from test_surgery_coupled import PARAMS, X, unit
from test_surgery_models import NOT_DIFFERENTIABLE, ZEROING_DIFFERS

import jaxprune as jp
from jaxprune.surgery import plan_units
from jaxprune.surgery.coupled_units import coupled_units
from jaxprune.tree_nodes import leaves_of

MODELS = {**plain_models.MODELS, **library_models.MODELS}


def groups_and_plan(name, seed=0):
    fn, params, inputs = MODELS[name]()
    groups = jp.find_groups(fn, params, *inputs)
    return fn, params, inputs, groups, plan_units(groups, random_masks(groups, seed))


def arrays(masks):
    """Masks as a training carries them: arrays throughout."""
    return jax.tree.map(jnp.asarray, masks)


def total(f, inputs):
    def loss(params, *more):
        outs = jax.tree.leaves(f(params, *more, *inputs))
        return sum(jnp.sum(jnp.sin(o)) for o in outs if jnp.issubdtype(o.dtype, jnp.floating))

    return loss


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("name", MODELS)
def test_small_function_equals_masked_function_of_traced_masks(name):
    fn, params, inputs, groups, plan = groups_and_plan(name)
    masks = plan.masks(params)
    masked = jax.jit(jp.masked_fn(fn, groups))(params, masks, *inputs)
    small = jax.jit(plan.compact(fn))(plan.shrink(params), *inputs)
    assert difference(small, masked) < 1e-5
    if name in ZEROING_DIFFERS:  # and plain zeroing is another function
        zeroed = difference(fn(jp.apply_masks(params, masks), *inputs), small)
        assert zeroed > 1e-5 and zeroed > 10 * difference(small, masked)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", [name for name in MODELS if name not in NOT_DIFFERENTIABLE])
def test_gradients_are_those_of_the_small_function_and_zero_at_pruned_weights(name):
    fn, params, inputs, groups, plan = groups_and_plan(name, seed=2)
    masks = plan.masks(params)
    gradient = jax.jit(jax.grad(total(jp.masked_fn(fn, groups), inputs), allow_int=True))(params, masks)
    small = jax.jit(jax.grad(total(plan.compact(fn), inputs), allow_int=True))(plan.shrink(params))
    is_float = [g.dtype != jax.dtypes.float0 for g in jax.tree.leaves(small)]
    pairs = zip(jax.tree.leaves(small), jax.tree.leaves(plan.shrink(gradient)), is_float, strict=True)
    pairs = [(a, b) for a, b, floating in pairs if floating]
    assert difference(*map(list, zip(*pairs, strict=True))) < 1e-5
    for g, mask, floating in zip(*map(jax.tree.leaves, (gradient, masks)), is_float, strict=True):
        assert not floating or not jnp.any(jnp.where(mask, 0, g))


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("name", ["residual CNN", "transformer", "Linen LM (remat, scan, tied)", "Haiku CNN"])
def test_masks_move_without_a_new_program_and_other_batches_fit(name):
    fn, params, inputs = MODELS[name]()
    groups = jp.find_groups(fn, params, *inputs)
    traces = []

    @jax.jit
    def masked(params, masks, *inputs):
        traces.append(0)
        return jp.masked_fn(fn, groups)(params, masks, *inputs)

    more = (jnp.concatenate([inputs[0]] * 3), *inputs[1:])
    for seed in range(3):
        plan = plan_units(groups, random_masks(groups, seed))
        outs = masked(params, arrays(plan.masks(params)), *more)
        assert difference(jax.jit(plan.compact(fn))(plan.shrink(params), *more), outs) < 1e-5
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax over units", "custom_vjp", "scanned layers", "loops"])
def test_vmap_over_masks_is_one_call_for_each(name):
    fn, params, inputs = MODELS[name]()
    groups = jp.find_groups(fn, params, *inputs)
    masked = jp.masked_fn(fn, groups)
    masks = [arrays(plan_units(groups, random_masks(groups, seed)).masks(params)) for seed in range(3)]
    full = [jax.tree.map(lambda m, w: jnp.broadcast_to(m, np.shape(w)), of_plan, params) for of_plan in masks]
    stacked = jax.tree.map(lambda *m: jnp.stack(m), *full)
    together = jax.jit(jax.vmap(lambda m: masked(params, m, *inputs)))(stacked)
    each = [jax.jit(masked)(params, m, *inputs) for m in masks]
    assert difference(together, jax.tree.map(lambda *outs: jnp.stack(outs), *each)) < 1e-5


def softmax_memory(p, x):
    return jax.nn.softmax(x @ p["keys"]) @ p["values"]


def test_gradients_stay_finite_where_a_pruned_unit_overflows():
    params = {"keys": jnp.array([[-200.0, -210.0, 0.0]]), "values": jnp.array([[1.0], [2.0], [3.0]])}
    x = jnp.ones((1, 1))
    groups = jp.find_groups(softmax_memory, params, x)
    masks = {"keys": jnp.array([[True, True, False]]), "values": jnp.array([[True], [True], [False]])}
    gradient = jax.grad(lambda p: jp.masked_fn(softmax_memory, groups)(p, masks, x).sum())(params)
    plan = jp.plan_from_masks(groups, masks)
    small = jax.grad(lambda p: plan.compact(softmax_memory)(p, x).sum())(plan.shrink(params))
    assert difference(small, plan.shrink(gradient)) < 1e-6
    assert gradient["keys"][0, 2] == 0 and gradient["values"][2, 0] == 0


@pytest.mark.slow
def test_what_is_trained_under_moving_masks_is_what_is_shipped():
    """`gradual` and a masked loss in one scan; the small function has the loss that the training saw last."""
    fn, params, inputs = MODELS["Equinox CNN"]()
    groups = jp.find_groups(fn, params, *inputs)
    arrays_of, static = jax.tree.flatten(params)
    is_array = [hasattr(leaf, "dtype") for leaf in arrays_of]
    weights = [leaf for leaf, flag in zip(arrays_of, is_array, strict=True) if flag]

    def join(weights):
        found = iter(weights)
        return jax.tree.unflatten(
            static, [next(found) if flag else leaf for leaf, flag in zip(arrays_of, is_array, strict=True)]
        )

    def of_list(weights, *inputs):
        return fn(join(weights), *inputs)

    groups = jp.find_groups(of_list, weights, *inputs)
    masked = jp.masked_fn(of_list, groups)
    tx = jp.gradual(
        optax.adam(1e-2), jp.schedules.linear(0.5, begin=0, end=4, every=1), structure=jp.Coupled(groups)
    )

    def loss(weights, masks):
        return jnp.mean(jnp.square(masked(weights, masks, *inputs) - 1.0))

    def step(carry, _):
        weights, state = carry
        value, gradient = jax.value_and_grad(loss)(weights, jp.get_masks(state))
        updates, state = tx.update(gradient, state, weights)
        return (optax.apply_updates(weights, updates), state), value

    (weights, state), losses = jax.jit(lambda c: jax.lax.scan(step, c, length=12))(
        (weights, tx.init(weights))
    )
    masks = jp.get_masks(state)
    plan = jp.plan_from_masks(groups, masks)
    small = jnp.mean(jnp.square(plan.compact(of_list)(plan.shrink(weights), *inputs) - 1.0))
    np.testing.assert_allclose(small, loss(weights, masks), rtol=1e-5)
    units = sum(group.size for group in groups)
    cut = coupled_units(groups, range(len(groups)), [leaf.path for leaf in leaves_of(masks)])
    pruned = cut.pruned(jax.tree.leaves(masks))
    assert sum(int(of_group.sum()) for of_group in pruned) == round(0.5 * units)
    assert losses[-1] < losses[4]


def test_masks_of_what_is_trained_serve_a_model_with_statistics():
    def fn(variables, x):
        p, bn = variables["params"], variables["batch_stats"]["bn"]
        h = (x @ p["up"] - bn["mean"]) / jnp.sqrt(bn["var"] + 1e-5)
        return jax.nn.softmax(h) @ p["down"]

    params = {"up": PARAMS["up"], "down": PARAMS["down"]}
    variables = {"params": params, "batch_stats": {"bn": {"mean": PARAMS["b"], "var": jnp.arange(4.0)}}}
    groups = jp.find_groups(fn, variables, X)
    masks = jp.make_masks(params, 0.5, structure=jp.Coupled(groups))
    plan = jp.plan_from_masks(groups, masks)
    small = plan.compact(fn)(plan.shrink(variables), X)
    assert difference(small, jp.masked_fn(fn, groups)(variables, masks, X)) < 1e-6
    assert difference(small, jax.jit(jp.masked_fn(fn, groups))(variables, {"params": masks}, X)) < 1e-6


def test_nan_in_pruned_weights_reaches_neither_values_nor_gradients():
    groups = jp.find_groups(unit, PARAMS, X)
    masks = jp.make_masks(PARAMS, 0.5, structure=jp.Coupled(groups))
    broken = jax.tree.map(lambda w, m: jnp.where(m, w, jnp.nan), PARAMS, masks)
    masked = jp.masked_fn(unit, groups)
    np.testing.assert_array_equal(masked(broken, masks, X), masked(PARAMS, masks, X))
    gradients = [jax.grad(lambda p: masked(p, masks, X).sum())(params) for params in (broken, PARAMS)]
    assert all(bool(jnp.all(a == b)) for a, b in zip(*map(jax.tree.leaves, gradients), strict=True))


def test_what_is_wrong_is_told():
    groups = jp.find_groups(unit, PARAMS, X)
    masked = jp.masked_fn(unit, groups)
    full = {"up": True, "b": True, "down": True, "out": True}
    np.testing.assert_array_equal(masked(PARAMS, full, X), unit(PARAMS, X))
    with pytest.raises(TypeError, match="`groups` must be what"):
        jp.masked_fn(unit, None)
    with pytest.raises(ValueError, match=r"unit 1 of group 'b\[0\]' in part"):
        masked(PARAMS, {**full, "b": jnp.array([True, False, True, True])}, X)
    with pytest.raises(ValueError, match="`masks` must broadcast to the parameters"):
        masked(PARAMS, {**full, "b": jnp.ones(3, bool)}, X)
    with pytest.raises(ValueError, match=r"\(4,\) at 'b', got \(3,\)"):
        masked({**PARAMS, "b": jnp.ones(3)}, full, X)
    with pytest.raises(ValueError, match="lacks 'down'"):
        masked({name: PARAMS[name] for name in ("up", "b", "out")}, full, X)
    other = jp.masked_fn(lambda p, x: (unit(p, x), p["b"]), groups)
    with pytest.raises(ValueError, match="the groups do not fit this function at 'b', axis 0"):
        other(PARAMS, full, X)
