"""Groups that lose the same number of units each, and groups that alone may lose any."""

import itertools

import branch_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_layers import data, weights

import jaxprune as jp
from jaxprune.shrinking.planners import Stage

EVERY = list(itertools.product(("local", "global"), ("units", "params", "flops")))


def network(*widths, inputs=3):
    """Layers of these widths beside each other, by the names of a stack, and a narrower unlike one."""
    params = {
        "layers": [weights(seed=i, up=(inputs, n), down=(n, 2)) for i, n in enumerate(widths)],
        "other": weights(seed=9, up=(inputs, 4), down=(4, 2)),
    }

    def fn(p, x):
        return sum(jnp.tanh(x @ layer["up"]) @ layer["down"] for layer in [*p["layers"], p["other"]])

    return jp.find_groups(fn, params, data(1, inputs)), params


def left(plan, widths):
    shapes = plan.small_shapes
    return [shapes[f"layers/{i}/up"][1] for i in range(len(widths))], shapes["other/up"][1]


@pytest.fixture(scope="module")
def three():
    return network(8, 8, 8)


UNITS = {
    "layers/0/down[0]": np.array([1, 2, 3, 9, 9, 9, 9, 9.0]),
    "layers/1/down[0]": np.array([9, 9, 9, 9, 9, 6, 5, 4.0]),
    "layers/2/down[0]": np.array([9, 9, 9, 1, 1, 1, 9, 9.0]),
    "other/down[0]": np.array([2.5, 2, 3, 20]),
}


def test_hand_worked(three):
    """The n-th lowest units of the three have the means (1+4+1)/3 = 2, (2+5+1)/3 = 2.67, (3+6+1)/3 = 3.33."""
    groups, params = three
    score = jp.surgery.UnitScores(UNITS)

    def plan(number, alike):
        return jp.plan_removal(
            groups, params, number / 28, "global", score, budget="units", normalize=None, alike=alike
        )

    # In order: 2 of all three (before the 2 of the other group, as layers come first), 2, 2.5, 2.67 of all three, 3.
    expected = {0: (8, 4), 1: (7, 4), 3: (7, 4), 4: (7, 3), 5: (7, 2), 6: (6, 2), 8: (6, 2), 9: (6, 1)}
    for number, (layers, other) in expected.items():
        for alike in (True, "layers/*/up[1]", "layers/.*", [("layers/0", "layers/2"), ("layers/[12]",)]):
            assert left(plan(number, alike), range(3)) == ([layers] * 3, other), (number, alike)
    assert left(plan(3, ()), range(3)) == ([7, 8, 6], 4)
    assert left(plan(3, [[group for group in groups if group.size == 8]]), range(3)) == ([7] * 3, 4)
    kept = plan(8, True).kept
    assert np.flatnonzero(~kept["layers/0/up"][1]).tolist() == [0, 1]
    assert np.flatnonzero(~kept["layers/1/up"][1]).tolist() == [6, 7]
    assert np.flatnonzero(~kept["layers/2/up"][1]).tolist() == [3, 4]


@pytest.mark.parametrize(("scope", "budget"), EVERY)
def test_every_budget_is_met_with_one_number_for_all_and_one_less_misses_it(three, scope, budget):
    groups, params = three
    for percent in range(0, 85, 7):
        plan = jp.plan_removal(groups, params, percent / 100, scope, budget=budget, alike=True)
        layers, other = left(plan, range(3))
        assert len(set(layers)) == 1
        lost, target = 28 - sum(layers) - other, round(28 * percent / 100)  # all units cost the same
        if scope == "global":
            assert target <= lost < target + 3, percent
        else:  # groups of one size lose the same share anyway
            free = jp.plan_removal(groups, params, percent / 100, scope, budget=budget)
            assert plan.small_shapes == free.small_shapes


@pytest.mark.parametrize(("scope", "budget"), EVERY)
def test_whole_multiples_and_a_minimum(three, scope, budget):
    groups, params = three
    plan = jp.plan_removal(groups, params, 0.4, scope, budget=budget, alike=True, round_to=4)
    layers, _ = left(plan, range(3))
    assert len(set(layers)) == 1 and layers[0] % 4 == 0
    plan = jp.plan_removal(groups, params, 0.3, scope, budget=budget, alike=True, minimum=5)
    layers, _ = left(plan, range(3))
    assert len(set(layers)) == 1 and layers[0] >= 5


def test_true_ties_repeated_layers_of_one_size():
    groups, params = network(8, 8, 6, 6)
    plan = jp.plan_removal(groups, params, 0.5, "global", alike=True)
    (a, b, c, d), _ = left(plan, range(4))
    assert a == b and c == d
    assert jp.plan_removal(groups, params, 0.5, "global", alike=False).small_shapes == (
        jp.plan_removal(groups, params, 0.5, "global").small_shapes
    )
    assert a + c < 14


def test_true_does_not_tie_layers_of_one_stack_that_feed_each_other():
    params = {f"Dense_{i}": weights(kernel=(6, 6), bias=(6,)) for i in range(4)}

    def fn(p, x):
        for i in range(4):
            x = jnp.tanh(x @ p[f"Dense_{i}"]["kernel"] + p[f"Dense_{i}"]["bias"])
        return x

    groups = jp.find_groups(fn, params, data(1, 6))
    assert jp.plan_removal(groups, params, 0.3, "global", alike=True).small_shapes == (
        jp.plan_removal(groups, params, 0.3, "global").small_shapes
    )


def test_layers_of_a_transformer():
    fn, params = branch_models.language_model(branch_models.pre_norm, lambda f: f), branch_models.listed()
    groups = jp.find_groups(fn, params, branch_models.IDS)
    free = jp.plan_removal(groups, params, 0.4, "global", exclude="embedding", budget="flops")
    plan = jp.plan_removal(groups, params, 0.4, "global", exclude="embedding", budget="flops", alike=True)
    for name, axis in (("attn/q", 1), ("attn/v", 1), ("mlp/up", 1)):
        numbers = [[p.small_shapes[f"layers/{i}/{name}"][axis] for i in range(3)] for p in (free, plan)]
        assert len(set(numbers[0])) > 1 and len(set(numbers[1])) == 1
    # Queries and values are tied too where one pattern names both.
    both = (("layers/*/attn/q[1]", "layers/*/attn/v[1]"), "layers/*/mlp/up[1]")
    plan = jp.plan_removal(groups, params, 0.3, "global", exclude="embedding", alike=both)
    assert len({plan.small_shapes[f"layers/{i}/attn/{n}"][1] for i in range(3) for n in "qkv"}) == 1


def test_only_names_the_groups_that_may_lose_units(three):
    groups, params = three
    plan = jp.plan_removal(groups, params, 0.3, only="layers/*/up[1]", budget="units")
    assert left(plan, range(3)) == ([6, 6, 6], 4)
    plan = jp.plan_removal(groups, params, 0.3, only="layers", exclude="layers/1", budget="units")
    assert left(plan, range(3)) == ([6, 8, 6], 4)
    one = jp.plan_removal(groups, params, 0.1, only=["layers/1/up[1]"], score=jp.surgery.UnitScores(UNITS))
    assert left(one, range(3)) == ([8, 5, 8], 4)
    with pytest.raises(ValueError, match="can't be reached"):
        jp.plan_removal(groups, params, 0.1, only=[])


def test_overrides_of_all_alike_groups(three):
    groups, params = three
    plan = jp.plan_removal(groups, params, 0.0, overrides={"layers": 0.5}, alike=True)
    assert left(plan, range(3)) == ([4, 4, 4], 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"alike": ".*"},
            ValueError,
            r"different sizes.*8 units in layers/\*/down\[0\] x 3; 4 units in other",
        ),
        ({"alike": "layer"}, ValueError, "`alike` pattern 'layer' matched no group"),
        (
            {"alike": True, "exclude": "layers/1"},
            ValueError,
            r"different numbers.*0 .*for layers/1/down\[0\]",
        ),
        ({"alike": ["layers"], "only": ["layers/0"]}, ValueError, "what the budget asks for layers/0"),
        ({"alike": "layers", "overrides": {"layers/0": 0.5}}, ValueError, "0.5 .*for layers/0"),
        ({"alike": 3}, TypeError, "`alike` must be True, or names"),
        ({"alike": ["layers", 3]}, TypeError, "`alike` must be True, or names"),
        ({"only": "layer"}, ValueError, "`only` pattern 'layer' matched no group"),
        ({"only": "*("}, ValueError, "is not a regular expression"),
    ],
)
def test_says_what_is_wrong(three, arguments, error, message):
    groups, params = three
    with pytest.raises(error, match=message):
        jp.plan_removal(groups, params, 0.2, **arguments)
    if error is TypeError:
        with pytest.raises(error, match=message):
            jp.RemoveUnits(**arguments)


@pytest.mark.parametrize(
    "pattern", ["layers/*/up[1]", "layers/*/down[0]", "layers/*/up", "layers/*", "*/*/up"]
)
def test_patterns_as_tables_print_them(three, pattern):
    groups, _ = three
    assert groups.named(pattern, "only") == [f"layers/{i}/down[0]" for i in range(3)]


def test_a_set_keeps_what_the_routers_of_all_its_groups_choose():
    """Two mixtures of experts of which the routers choose one and two."""
    params = {
        "layers": [
            {"router": r["router"], "w": r["w"]}
            for r in (weights(s, router=(3, 4), w=(4, 3, 3)) for s in (0, 1))
        ]
    }

    def fn(p, x):
        for layer, k in zip(p["layers"], (1, 2), strict=True):
            values, places = jax.lax.top_k(x @ layer["router"], k)
            mixed = jnp.einsum("bk,bkij->bij", values, jnp.take(layer["w"], places, axis=0))
            x = jnp.einsum("bi,bij->bj", x, mixed)
        return x

    groups = jp.find_groups(fn, params, data(2, 3))
    experts = [group.name for group in groups if group.chosen]
    assert sorted(groups[name].chosen for name in experts) == [1, 2]
    plan = jp.plan_removal(
        groups, params, 0.0, overrides=dict.fromkeys(experts, 0.9), alike=[experts], only=experts
    )
    assert [plan.small_shapes[f"layers/{i}/w"][0] for i in range(2)] == [2, 2]


@pytest.mark.parametrize(("scope", "budget"), [("local", "units"), ("global", "params")])
def test_planners_keep_layers_alike(three, scope, budget):
    groups, params = three
    planner = jp.RemoveUnits(
        scope=scope, budget=budget, only=["layers/*/up[1]"], alike=["layers/*/up[1]"], round_to=2
    )
    assert "alike=('layers/*/up[1]',)" in repr(planner) and hash(planner.alike) is not None
    assert repr(jp.RemoveUnits()) == "RemoveUnits(budget='params')"
    fn, now = groups.fn, params
    for round, sparsity in enumerate((0.2, 0.5), 1):
        stage = Stage(fn, now, (data(1, 3),), sparsity, round, jax.random.key(0), groups.fn, params)
        planner.check(stage) if round == 1 else None
        plan = planner(stage)
        fn, now = plan.compact(fn), plan.shrink(now)
        layers, other = left(plan, range(3))
        assert other == 4 and len(set(layers)) == 1 and layers[0] % 2 == 0
    assert layers[0] in (2, 4)
