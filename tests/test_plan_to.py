"""Plans that meet a share of the dense model's cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.surgery.unit_cost import part_costs, unit_cost
from jaxprune.targets.costs import Cost
from jaxprune.targets.latency_model import fit, latency_cost
from jaxprune.targets.path import cheapest_path, uniform_path
from jaxprune.targets.units import Choice

X = jax.random.normal(jax.random.key(7), (16, 6))


def layers_of(key, depth=3, width=16, scale=None):
    """Residual MLPs of different widths, between two frozen ends; `scale` says how much each layer adds."""
    keys = iter(jax.random.split(key, 3 * depth + 2))
    params = {"in": jax.random.normal(next(keys), (6, 8)), "out": jax.random.normal(next(keys), (8, 3))}
    for i in range(depth):
        hidden = width * (i + 1)
        up, down = jax.random.normal(next(keys), (8, hidden)), jax.random.normal(next(keys), (hidden, 8))
        factor = 1.0 if scale is None else scale[i]
        params[f"layer_{i}"] = {"up": up, "down": factor * down / hidden}
    return params


def fn(params, x):
    x = x @ params["in"]
    for name in sorted(name for name in params if name.startswith("layer")):
        x = x + jax.nn.relu(x @ params[name]["up"]) @ params[name]["down"]
    return x @ params["out"]


def odd(params, x):
    """The same with the layers in a list, and tanh: what units add has no mean, so that errors add up."""
    x = x @ params["in"]
    for layer in params["layers"]:
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return x @ params["out"]


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def flops(fn, params, x):
    """From XLA's own count of the matrix products' shapes, two a multiply-add."""
    total = 0
    for eqn in jax.make_jaxpr(fn)(params, x).eqns:
        if eqn.primitive.name == "dot_general":
            a, b = (v.aval.shape for v in eqn.invars)
            total += 2 * a[0] * a[1] * b[1]
    return total


class Clock:
    """A made-up machine, on which a network's latency follows from its shapes."""

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, 0

    def __call__(self, fn, params, inputs):
        self.calls += 1
        return self.seconds(params, inputs)


def ups(params):
    return [leaf.shape[1] for path, leaf in jax.tree_util.tree_leaves_with_path(params) if "up" in str(path)]


MACHINES = {
    "FLOPs": lambda params, inputs: 1e-6 * size(params) + 1e-5,
    "wide layers are slow": lambda params, inputs: 1e-6 * sum(n**1.5 for n in ups(params)) + 3e-5,
    "vectors of eight": lambda params, inputs: 1e-6 * sum(-(-n // 8) * 8 for n in ups(params)) + 1e-5,
    "one layer costs most": lambda params, inputs: 1e-6 * (10 * ups(params)[0] + sum(ups(params))),
}


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize(
    ("machine", "scope"), [*((m, "local") for m in MACHINES), ("wide layers are slow", "global")]
)
def test_a_latency_is_met_within_five_percent_by_few_networks(machine, scope):
    params = layers_of(jax.random.key(0), depth=2, width=64)
    clock = Clock(MACHINES[machine])
    groups = jp.find_groups(fn, params, X)
    plan = jp.plan_to(
        groups, fn, params, X, latency=0.6, runtime=clock, scope=scope, exclude="in", round_to=1
    )
    small = plan.shrink(params)
    reached = clock(None, small, (X,)) / clock(None, params, (X,))
    assert plan.measured.reached == pytest.approx(reached)
    assert 0.57 <= reached <= 0.63
    assert clock.calls - 2 <= 20


@pytest.mark.parametrize(
    ("target", "scope", "normalize"),
    [
        *((target, scope, None) for target in ("params", "flops", "bytes") for scope in ("global", "local")),
        ("params", "global", "mean"),
    ],
)
def test_other_targets_are_exact_and_no_unit_too_many_goes(target, scope, normalize):
    params = layers_of(jax.random.key(1))
    params["layer_1"] = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["layer_1"])
    groups = jp.find_groups(fn, params, X)

    def cost(params):
        leaves = jax.tree.leaves(params)
        return {
            "params": size(params),
            "flops": flops(fn, params, X),
            "bytes": sum(leaf.nbytes for leaf in leaves),
        }[target]

    plan = jp.plan_to(groups, fn, params, X, scope=scope, normalize=normalize, round_to=1, **{target: 0.5})
    small = plan.shrink(params)
    assert plan.measured.reached == pytest.approx(cost(small) / cost(params), abs=1e-12)
    assert plan.measured.small == cost(small) and plan.measured.dense == cost(params)
    assert 0.4 < plan.measured.reached <= 0.5


def test_the_first_row_of_the_path_that_fits_is_taken():
    params = layers_of(jax.random.key(1), depth=1)
    groups = jp.find_groups(fn, params, X)
    wanted = size(params) - 5 * 16  # a hidden unit has 16 weights
    plan = jp.plan_to(groups, fn, params, X, params=wanted / size(params), only="layer_0/up")
    assert plan.small_shapes["layer_0/up"] == (8, 11)
    plan = jp.plan_to(groups, fn, params, X, params=(wanted - 1) / size(params), only="layer_0/up")
    assert plan.small_shapes["layer_0/up"] == (8, 10)


def test_units_of_a_layer_that_does_nothing_go_first():
    params = layers_of(jax.random.key(2), scale=(1.0, 1.0, 1e-4))
    groups = jp.find_groups(fn, params, X)
    plan = jp.plan_to(groups, fn, params, X, params=0.75, exclude="in")
    small = plan.small_shapes
    assert small["layer_0/up"] == (8, 16) and small["layer_1/up"] == (8, 32)
    assert small["layer_2/up"][1] < 48


def test_scores_that_are_damages_make_a_knapsack():
    """Two groups, one four times as dear: the order of score over cost, by hand."""

    def two(params, x):
        a = jnp.tanh(x[:, :1] @ params["cheap"]) @ params["cheap_out"]
        return a + jnp.tanh(x[:, :4] @ params["dear"]) @ params["dear_out"]

    params = {
        "cheap": jnp.ones((1, 3)),
        "cheap_out": jnp.ones((3, 1)),
        "dear": jnp.ones((4, 3)),
        "dear_out": jnp.ones((3, 4))[:, :1] * 1.0,
    }
    groups = jp.find_groups(two, params, X)
    by_path = {group.members[0].path.split("_")[0]: group.name for group in groups}
    score = jp.surgery.UnitScores(
        {by_path["cheap"]: np.array([2.0, 5.0, 9.0]), by_path["dear"]: np.array([4.0, 6.0, 50.0])}
    )
    # Costs 2 and 5. Damage over cost: cheap 1, 2.5, 4.5 and dear 0.8, 1.2, 10: dear, cheap, dear, cheap.
    choice = Choice.of(groups, (), None, (), 1, 1)
    units = choice.units(groups, params, score)
    found = unit_cost(groups, units.numbers, "params")
    terms = dict(zip(found.factors, found.coefficients, strict=True))
    path = cheapest_path(units, Cost(found.sizes, terms), None)
    columns = [list(groups.keys()).index(by_path[name]) for name in ("cheap", "dear")]
    assert path[:, columns].tolist() == [[3, 3], [3, 2], [2, 2], [2, 1], [1, 1]]


def test_one_share_of_all_groups():
    params = layers_of(jax.random.key(1))
    groups = jp.find_groups(fn, params, X)
    units = Choice.of(groups, "in", None, (), 2, 4).units(groups, params, None)
    path = uniform_path(units)
    hidden = [i for i, group in enumerate(groups) if group.size > 8]
    shares = path[:, hidden] / np.array(units.sizes)[hidden]
    assert (np.ptp(shares, axis=1) <= 4 / 16).all()
    assert (path[:, hidden] % 4 == 0).all() and (path[-1, hidden] == 4).all()
    assert (np.diff(path, axis=0) <= 0).all() and (path[0] == units.sizes).all()


def test_seconds_of_products_are_found():
    """Two kinds of products, one ten times as slow for its FLOPs, and a constant."""
    params = layers_of(jax.random.key(1), depth=2, width=32)
    groups = jp.find_groups(fn, params, X)
    units = Choice.of(groups, "in", None, (), 1, 1).units(groups, params, None)
    parts = part_costs(groups, units.numbers)

    def truth(kept):
        by_size = dict(zip(units.sizes, kept, strict=True))
        return 0.2 + 0.1 * by_size[32] / 32 + 0.7 * by_size[64] / 64

    rows = [units.sizes]
    for share in (0.25, 0.5, 0.75):
        for group, n in enumerate(units.sizes):
            if n > 8:
                rows.append(tuple(int(m * share) if i == group else m for i, m in enumerate(units.sizes)))
    model = latency_cost(units.sizes, parts, fit(parts, rows, [truth(row) for row in rows]))
    kept = tuple({8: 8, 32: 5, 64: 11}[n] for n in units.sizes)
    assert model.of(kept) == pytest.approx(truth(kept), rel=0.05)


def as_list(params):
    names = sorted(name for name in params if name.startswith("layer"))
    return {"in": params["in"], "out": params["out"], "layers": [params[name] for name in names]}


@pytest.mark.parametrize("target", ["latency", "params"])
def test_layers_that_do_nothing_are_left_out_and_the_rest_comes_from_widths(target):
    params = as_list(layers_of(jax.random.key(3), depth=4, scale=(1.0, 1e-5, 1.0, 1.0)))
    both = jp.find_groups(odd, params, X), jp.find_branches(odd, params, X)
    clock = Clock(lambda params, inputs: 1e-6 * size(params))
    how = {"runtime": clock} if target == "latency" else {}
    plan = jp.plan_to(both, odd, params, X, exclude="in", minimum=30, **{target: 0.7}, **how)
    small = plan.shrink(params)
    assert 0.6 < size(small) / size(params) <= 0.735
    assert small["layers"][1] == {"up": None, "down": None} or small["layers"][1] is None
    assert small["layers"][0]["up"].shape[1] == 16 and small["layers"][3]["up"].shape[1] < 64
    assert plan.verify(odd, params, X).ok
    assert f"{target}" in str(plan) and "error" in str(plan)


def test_branches_alone_lose_as_few_layers_as_needed():
    params = layers_of(jax.random.key(3), depth=4, width=16)
    branches = jp.find_branches(fn, params, X)
    score = {f"layer_{i}": value for i, value in enumerate((3.0, 0.5, 2.0, 1.0))}
    plan = jp.plan_to(branches, fn, params, X, params=0.81, score=score)
    assert plan.removed == ("layer_1",)
    plan = jp.plan_to(branches, fn, params, X, params=0.75, layer_score=score)
    assert plan.removed == ("layer_1", "layer_3")
    clock = Clock(lambda params, inputs: 1e-6 * size(params))
    plan = jp.plan_to(branches, fn, params, X, latency=0.8, score=score, runtime=clock)
    assert plan.removed == ("layer_1",)
    assert plan.measured.reached == pytest.approx(size(plan.shrink(params)) / size(params))


def test_large_groups_keep_multiples_of_eight_unless_told_otherwise():
    params = layers_of(jax.random.key(4), depth=3)
    groups = jp.find_groups(fn, params, X)
    plan = jp.plan_to(groups, fn, params, X, params=0.7, exclude="in", scope="local")
    assert [plan.small_shapes[f"layer_{i}/up"][1] % 8 for i in (1, 2)] == [0, 0]
    assert plan.small_shapes["layer_0/up"][1] % 8  # a group of 16
    plan = jp.plan_to(groups, fn, params, X, params=0.7, exclude="in", scope="local", round_to=5)
    assert [plan.small_shapes[f"layer_{i}/up"][1] % 5 for i in range(3)] == [0, 0, 0]


def test_alike_groups_keep_the_same_number_of_units():
    params = {
        **layers_of(jax.random.key(4), depth=1),
        "layer_1": layers_of(jax.random.key(5), depth=1)["layer_0"],
    }
    groups = jp.find_groups(fn, params, X)
    plan = jp.plan_to(groups, fn, params, X, params=0.7, alike="layer_*/up[1]", exclude="in")
    small = plan.small_shapes
    assert small["layer_0/up"] == small["layer_1/up"] and small["layer_0/up"][1] < 16


def test_jax_is_timed_and_the_batch_is_resized():
    params = layers_of(jax.random.key(0), depth=1, width=64)
    groups = jp.find_groups(fn, params, X)
    plan = jp.plan_to(
        groups, fn, params, X, latency=0.95, batch=64, tolerance=0.9, seconds=0.001, scope="local"
    )
    assert plan.measured.where.startswith("JAX") and plan.measured.where.endswith("batch 64")
    assert plan.measured.dense > 0 and plan.measured.table


def test_what_can_not_be_reached_says_how_small_it_gets():
    params = layers_of(jax.random.key(0))
    groups = jp.find_groups(fn, params, X)
    with pytest.raises(ValueError, match=r"`params` 0.01 can't be reached.*the smallest model has 0\.\d+"):
        jp.plan_to(groups, fn, params, X, params=0.01, minimum=4)
    clock = Clock(lambda params, inputs: 1.0)
    with pytest.raises(ValueError, match=r"`latency` 0.5 can't be reached.*the smallest model has 1.000"):
        jp.plan_to(groups, fn, params, X, latency=0.5, runtime=clock, scope="local")


def bad_clock(fn, params, inputs):
    return float("nan")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "exactly one of `latency`, `flops`, `params`, `bytes`, got none"),
        ({"latency": 0.5, "flops": 0.5}, r"got latency=0.5, flops=0.5"),
        ({"params": 1.0}, r"`params` must be in \(0, 1\), got 1.0"),
        ({"params": float("nan")}, r"`params` must be in \(0, 1\)"),
        ({"params": 0.5, "scope": "layer"}, "`scope` must be one of 'local', 'global', got 'layer'"),
        ({"params": 0.5, "normalize": "max"}, "`normalize` must be one of 'mean', None"),
        ({"latency": 0.5, "runtime": "torch"}, "`runtime` must be"),
        ({"latency": 0.5, "batch": 0}, "`batch` must be a positive whole number"),
        ({"latency": 0.5, "tolerance": 0}, "`tolerance` must be in"),
        ({"latency": 0.5, "runtime": bad_clock, "scope": "local"}, "`runtime` must give seconds above 0"),
        ({"params": 0.5, "exclude": "nothing"}, "`exclude`"),
    ],
)
def test_bad_arguments_are_named(how, message):
    params = layers_of(jax.random.key(0))
    groups = jp.find_groups(fn, params, X)
    with pytest.raises(ValueError, match=message):
        jp.plan_to(groups, fn, params, X, **how)


def test_groups_of_another_kind_and_inputs_without_values_are_named():
    params = layers_of(jax.random.key(0))
    with pytest.raises(TypeError, match="`groups` must be what"):
        jp.plan_to("layer_0", fn, params, X, params=0.5)
    groups = jp.find_groups(fn, params, X)
    with pytest.raises(ValueError, match="`inputs` must be arrays"):
        jp.plan_to(groups, fn, params, jax.ShapeDtypeStruct(X.shape, X.dtype), params=0.5)
    with pytest.raises(ValueError, match="`params` must be arrays with values"):
        jax.jit(lambda params: jp.plan_to(groups, fn, params, X, params=0.5).small_shapes)(params)


def test_inputs_that_are_not_those_that_were_analysed_are_named():
    params = layers_of(jax.random.key(0))

    def two(params, x, mask):
        return fn(params, x) * mask

    mask = jnp.ones((len(X), 1))
    groups, branches = jp.find_groups(two, params, X, mask), jp.find_branches(two, params, X, mask)
    for given in (groups, branches, (groups, branches)):
        with pytest.raises(ValueError, match=r"2 inputs in one tuple, got 1. Pass \(x1, x2\)"):
            jp.plan_to(given, two, params, [X, mask], params=0.5)
    with pytest.raises(ValueError, match=r"1 input in one tuple, got 2. Pass \(x1,\)"):
        jp.plan_to(jp.find_groups(fn, params, X), fn, params, (X, mask), params=0.5)


def test_where_nothing_tells_groups_apart_all_matter_alike():
    """Inputs of zeros or NaN give no errors to compare; scores of zero give no order."""
    params = layers_of(jax.random.key(0), depth=2)
    groups = jp.find_groups(fn, params, X)
    zero = jp.surgery.UnitScores({group.name: np.zeros(group.size) for group in groups})
    for x, score in ((0 * X, None), (jnp.nan * X, None), (X, zero)):
        plan = jp.plan_to(groups, fn, params, x, params=0.5, score=score, exclude="in", round_to=1)
        small = plan.small_shapes
        assert 0.4 < plan.measured.reached <= 0.5
        assert score is not None or small["layer_0/up"][1] == pytest.approx(small["layer_1/up"][1] / 2, abs=2)


def test_sizes_need_no_values():
    """Where only sizes decide nothing is run."""
    params = layers_of(jax.random.key(0))
    groups = jp.find_groups(fn, params, X)
    abstract = jax.ShapeDtypeStruct(X.shape, X.dtype)
    plan = jp.plan_to(groups, fn, params, abstract, params=0.5, scope="local")
    assert plan.measured.compilations == 0 and "networks" not in str(plan.measured)
