"""Plans: what is chosen, and that everything made from a plan fits together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_layers
import plain_models
import pytest
from checks import difference, random_plan
from flax import linen as nn

import jaxprune as jp
from jaxprune.surgery import plan_units


@pytest.fixture(scope="module")
def mlp():
    fn, params, inputs = plain_models.mlp()
    return fn, params, inputs, jp.find_groups(fn, params, *inputs)


@pytest.fixture(scope="module")
def llama():
    fn, params, inputs = plain_models.llama()
    return fn, params, inputs, jp.find_groups(fn, params, *inputs)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("scope", ["local", "global"])
def test_params_budget_is_met(llama, scope):
    _, params, _, groups = llama
    for sparsity in (0.3, 0.6):
        small = jp.plan_removal(groups, params, sparsity, scope).shrink(params)
        assert 0.6 * (1 - sparsity) * count(params) < count(small) <= (1 - sparsity) * count(params)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_units_budget_is_exact(mlp, scope):
    _, params, _, groups = mlp
    plan = jp.plan_removal(groups, params, 0.5, scope, budget="units")
    b1, b2 = plan.small_shapes["b1"][0], plan.small_shapes["b2"][0]
    assert b1 + b2 == 7
    if scope == "local":
        assert (b1, b2) == (4, 3)


def test_global_scope_removes_the_lowest_scores_of_all_groups(mlp):
    _, params, _, groups = mlp
    score = {**dict.fromkeys(params), "b1": jnp.arange(8.0) + 1, "b2": 0.1 * (jnp.arange(6.0) + 1)}
    plan = jp.plan_removal(groups, params, 5 / 14, "global", score=score, budget="units", normalize=None)
    assert plan.small_shapes["b1"] == (8,) and plan.small_shapes["b2"] == (1,)
    plan = jp.plan_removal(
        groups, params, 6 / 14, "global", score=score, budget="units", normalize=None, minimum=2
    )
    assert plan.small_shapes["b1"] == (6,) and plan.small_shapes["b2"] == (2,)


def test_flops_budget_counts_what_the_compiler_runs(mlp):
    fn, params, inputs, groups = mlp
    plan = jp.plan_removal(groups, params, 0.5, budget="flops")

    def dots(fn, params):
        jaxpr = jax.make_jaxpr(fn)(params, *inputs).jaxpr
        return sum(
            2 * np.prod(e.outvars[0].aval.shape) * e.invars[0].aval.shape[-1]
            for e in jaxpr.eqns
            if e.primitive.name == "dot_general"
        )

    before, after = dots(fn, params), dots(plan.compact(fn), plan.shrink(params))
    assert 0.25 * before < after <= 0.5 * before


def test_round_to_and_minimum():
    params = plain_layers.weights(a=(4, 64), b=(64, 40), c=(40, 2))
    groups = jp.find_groups(
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"], params, jnp.ones((1, 4))
    )
    for scope in ("local", "global"):
        plan = jp.plan_removal(groups, params, 0.6, scope, round_to=16)
        assert plan.small_shapes["b"][0] % 16 == 0 and (
            plan.small_shapes["b"][1] % 16 == 0 or plan.small_shapes["b"][1] == 40
        )
        assert min(jp.plan_removal(groups, params, 0.6, scope, minimum=20).small_shapes["b"]) >= 20


def test_overrides_and_exclude_take_groups_out_of_the_budget(mlp):
    _, params, _, groups = mlp
    plan = jp.plan_removal(groups, params, 0.25, budget="units", exclude="b1")
    assert plan.small_shapes["b1"] == (8,) and plan.small_shapes["b2"] == (4,)
    plan = jp.plan_removal(groups, params, 0.1, overrides={"b2[0]": 0.5, "w1": 0.75})
    assert plan.small_shapes["b1"] == (2,) and plan.small_shapes["b2"] == (3,)


def test_ties_remove_the_first_units(mlp):
    _, params, _, groups = mlp
    plan = jp.plan_removal(groups, params, 0.5, score=jax.tree.map(jnp.ones_like, params), budget="units")
    assert plan.kept["b1"][0].tolist() == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 90}, "must be in"),
        ({"sparsity": 0.999}, "can't be reached"),
        ({"scope": "layer"}, "`scope` must be one of"),
        ({"budget": "bytes"}, "`budget` must be one of"),
        ({"round_to": 0}, "`round_to` must be a positive"),
        ({"exclude": "conv"}, "matched no group"),
        ({"exclude": "("}, "is not a regular expression"),
        ({"overrides": {"b1": 3}}, "is a fraction"),
        ({"score": {"w1": 1.0}}, "`score` must have the tree structure of the parameters"),
        ({"score": lambda p: jax.tree.map(lambda x: x * jnp.nan, p)}, "not finite"),
    ],
)
def test_says_what_is_wrong(mlp, arguments, message):
    _, params, _, groups = mlp
    with pytest.raises(ValueError, match=message):
        jp.plan_removal(groups, params, **arguments)


def test_says_which_parameter_does_not_fit(mlp):
    fn, params, inputs, groups = mlp
    plan = jp.plan_removal(groups, params)
    with pytest.raises(ValueError, match=r"lacks 'w3'"):
        plan.shrink({k: v for k, v in params.items() if k != "w3"})
    with pytest.raises(ValueError, match=r"'w1' must have shape \(3, 8\)"):
        plan.shrink({**params, "w1": jnp.ones((3, 9))})
    with pytest.raises(ValueError, match=r"Pass `plan\.shrink"):
        plan.compact(fn)(params, *inputs)
    with pytest.raises(KeyError, match="no group 'nope'"):
        plan_units(groups, {"nope": [True]})
    other = jp.find_groups(lambda p, x: x @ p["w1"], params, *inputs)
    assert len(other) == 0
    with pytest.raises(ValueError, match="frozen here: axis 1 of the output"):
        plan.compact(lambda p, x: x @ p["w1"])(plan.shrink(params), *inputs)


def test_masks_broadcast_and_are_true_where_nothing_goes(mlp):
    _, params, _, groups = mlp
    plan = jp.plan_removal(groups, params, 0.5, budget="units", exclude="b2")
    masks = plan.masks(params)
    assert masks["w3"] is True and masks["b1"].shape == (8,) and masks["w1"].shape == (1, 8)
    assert masks["w2"].shape == (8, 1)
    small = plan.shrink(masks)
    assert small["w1"].shape == (1, 4) and small["w1"].all() and small["w3"] is True


@pytest.mark.slow
def test_plans_compose(llama):
    fn, params, inputs, groups = llama
    first = random_plan(groups, 0, 0.4)
    small, small_fn = first.shrink(params), first.compact(fn)
    second = random_plan(jp.find_groups(small_fn, small, *inputs), 1, 0.4)
    assert second.verify(small_fn, small, *inputs).ok
    step_by_step = jax.jit(second.compact(small_fn))(second.shrink(small), *inputs)
    both = first.then(second)
    assert difference(jax.jit(both.compact(fn))(both.shrink(params), *inputs), step_by_step) < 1e-6
    assert count(both.shrink(params)) < count(small)
    with pytest.raises(ValueError, match="`later` must be"):
        first.then(first)


@pytest.mark.slow
def test_plan_survives_saving(llama, tmp_path):
    fn, params, inputs, groups = llama
    plan = random_plan(groups)
    plan.save(tmp_path / "plan.npz")
    loaded = jp.Plan.load(tmp_path / "plan.npz")
    assert loaded.shapes == plan.shapes and loaded.small_shapes == plan.small_shapes
    out = jax.jit(loaded.compact(fn))(loaded.shrink(params), *inputs)
    assert difference(out, jax.jit(plan.compact(fn))(plan.shrink(params), *inputs)) == 0
    np.savez(tmp_path / "other.npz", header=np.array("{}"))
    with pytest.raises(ValueError, match="is not a 'jaxprune plan 1' file"):
        jp.Plan.load(tmp_path / "other.npz")


def test_prints_new_widths(mlp):
    _, params, _, groups = mlp
    text = str(jp.plan_removal(groups, params, 0.5, budget="units"))
    assert "w1          3x8     3x4" in text
    assert text.endswith("98 -> 37 parameters (62.2% removed)")


@pytest.mark.slow
def test_small_function_jits_vmaps_scans_and_exports(mlp):
    fn, params, inputs, groups = mlp
    plan = random_plan(groups)
    small, small_fn = plan.shrink(params), plan.compact(fn)
    (x,) = inputs
    expected = small_fn(small, x)
    assert difference(jax.jit(small_fn)(small, x), expected) < 1e-6
    assert difference(jax.vmap(small_fn, (None, 0))(small, x[:, None])[:, 0], expected) < 1e-6
    both = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), small)
    assert difference(jax.vmap(small_fn, (0, None))(both, x)[0], expected) < 1e-6
    _, scanned = jax.lax.scan(lambda c, row: (c, small_fn(small, row[None])[0]), None, x)
    assert difference(scanned, expected) < 1e-6
    exported = jax.export.export(jax.jit(small_fn))(small, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert difference(exported.call(small, x), expected) < 1e-6


def test_closing_over_a_traced_value_leaves_nothing_behind(mlp):
    _, params, inputs, _ = mlp
    (x,) = inputs

    @jax.jit
    def outer(scale, params):
        def fn(p, x):
            return jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] * scale @ p["w3"]

        return jp.surgery.plan_units(groups, {"b1[0]": np.arange(8) < 5}).compact(fn)(params, x)

    groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] @ p["w3"], params, x)
    small = plan_units(groups, {"b1[0]": np.arange(8) < 5}).shrink(params)
    assert difference(outer(2.0, small), 2 * outer(1.0, small)) < 1e-6


@pytest.mark.slow
def test_bfloat16_and_abstract_parameters(mlp):
    fn, params, inputs, groups = mlp
    plan = random_plan(groups)
    shapes = jax.eval_shape(lambda: params)
    assert jax.tree.map(lambda x: x.shape, plan.shrink(shapes)) == plan.small_shapes
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert plan.compact(fn)(plan.shrink(half), inputs[0].astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert [g.size for g in jp.find_groups(fn, shapes, *inputs)] == [g.size for g in groups]


@pytest.mark.slow
def test_trains_after_surgery(mlp):
    fn, params, inputs, groups = mlp
    plan = random_plan(groups)
    small, small_fn = plan.shrink(params), plan.compact(fn)
    target = jnp.sin(inputs[0][:, :2])
    tx = optax.adam(1e-2)

    def loss(p):
        return jnp.mean((small_fn(p, *inputs) - target) ** 2)

    @jax.jit
    def step(p, state):
        updates, state = tx.update(jax.grad(loss)(p), state)
        return optax.apply_updates(p, updates), state

    state, before = tx.init(small), loss(small)
    for _ in range(100):
        small, state = step(small, state)
    assert loss(small) < 0.5 * before


class TrainedNorm(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x)))
        return nn.Dense(2)(x)


@pytest.mark.slow
def test_state_that_goes_round_does_not_hold_its_axes():
    module, x = TrainedNorm(), plain_layers.data(5, 3)
    variables = module.init(jax.random.key(0), x)

    def fn(variables, x):
        return module.apply(variables, x, mutable=["batch_stats"])

    assert len(jp.find_groups(fn, variables, x)) == 0
    groups = jp.find_groups(fn, variables, x, state=lambda v, out: (v["batch_stats"], out[1]["batch_stats"]))
    assert [g.size for g in groups] == [8]
    plan = random_plan(groups)
    assert plan.verify(fn, variables, x).ok
    small = plan.shrink(variables)
    y, new = plan.compact(fn)(small, x)
    assert y.shape == (5, 2)
    assert jax.tree.map(jnp.shape, new["batch_stats"]) == jax.tree.map(jnp.shape, small["batch_stats"])
    again, _ = plan.compact(fn)({**small, **new}, x)
    assert difference(again, y) < 1e-6
    with pytest.raises(ValueError, match="`state` must return two trees"):
        jp.find_groups(fn, variables, x, state=lambda v, out: (v["batch_stats"], out[0]))


def test_leaves_that_are_no_arrays_pass_through():
    params = [jnp.ones((3, 8)), jax.nn.relu, "name", True, jnp.ones((8, 2))]

    def fn(p, x):
        return p[1](x @ p[0]) @ p[4]

    groups = jp.find_groups(fn, params, jnp.ones((1, 3)))
    plan = random_plan(groups)
    small = plan.shrink(params)
    assert small[1] is jax.nn.relu and small[2] == "name" and small[3] is True and small[4].shape == (4, 2)
    assert plan.verify(fn, params, jnp.ones((1, 3))).ok
