"""Whole experts of mixtures of experts are units: removed ones are never chosen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import difference, gradient_error
from expert_models import (
    EXPERTS,
    FORMS,
    HIDDEN,
    TOKENS,
    WIDTH,
    combined,
    inputs,
    parameters,
    sorted_rows,
    top_2,
)
from jax import lax
from plain_layers import weights

import jaxprune as jp

KEEP = np.array([False, True, True, False, True])


def experts_of(groups):
    (found,) = [group for group in groups if group.chosen]
    return found


@pytest.fixture(params=FORMS, ids=list(FORMS))
def form(request):
    return FORMS[request.param]


@pytest.mark.slow_beyond(3)
def test_experts_are_a_group_of_the_router_and_all_their_weights(form):
    params = parameters(form)
    group = experts_of(jp.find_groups(form.fn, params, inputs()))
    assert (group.size, group.chosen) == (EXPERTS, form.chosen)
    assert {member.path for member in group.members} == set(form.members.split())


@pytest.mark.slow_beyond(3)
def test_the_small_function_is_the_model_without_these_experts(form):
    params, x = parameters(form), inputs()
    groups = jp.find_groups(form.fn, params, x)
    plan = jp.surgery.plan_units(groups, {experts_of(groups): KEEP})
    small = plan.shrink(params)
    found = jax.jit(plan.compact(form.fn))(small, x)
    deleted = {name: small[name] for name in small}
    assert difference(found, form.fn(deleted, x)) < 1e-6
    by_hand = form.fn(params, x, jnp.where(KEEP, 0.0, -jnp.inf))
    assert difference(found, by_hand) < 1e-5
    assert difference(form.fn(params, x), by_hand) > 1e-2  # removed experts were chosen before
    report = plan.verify(form.fn, params, x, tolerance=1e-5)
    assert report.ok, str(report)


@pytest.mark.slow_beyond(2)
def test_masks_that_are_traced_compute_the_small_function_and_its_gradients(form):
    params, x = parameters(form), inputs()
    groups = jp.find_groups(form.fn, params, x)
    plan = jp.surgery.plan_units(groups, {experts_of(groups): KEEP})
    masked, small_fn = jp.masked_fn(form.fn, groups), plan.compact(form.fn)

    def loss(fn, params, *args):
        return jnp.sum(jnp.sin(fn(params, *args, x)))

    value, gradient = jax.jit(jax.value_and_grad(lambda p, m: loss(masked, p, m)))(params, plan.masks(params))
    expected, small = jax.value_and_grad(lambda p: loss(small_fn, p))(plan.shrink(params))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    assert difference(plan.shrink(gradient), small) < 1e-4
    kept = jp.apply_masks(gradient, plan.masks(params))
    jax.tree.map(np.testing.assert_array_equal, gradient, kept)


def stacked(layer, p, x):
    """A scan over layers."""
    return lax.scan(lambda x, p: (layer(p, x), None), x, p)[0]


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "remat"])
def test_layers_of_a_scan_lose_the_same_experts(wrap):
    params = weights(
        router=(3, WIDTH, EXPERTS),
        up=(3, EXPERTS, WIDTH, HIDDEN),
        down=(3, EXPERTS, HIDDEN, WIDTH),
        b=(3, EXPERTS, WIDTH),
    )

    def fn(p, x):
        return stacked(wrap(sorted_rows), p, x) * 0.5

    x = inputs()
    groups = jp.find_groups(fn, params, x)
    plan = jp.surgery.plan_units(groups, {experts_of(groups): KEEP})
    small = plan.shrink(params)
    assert small["router"].shape == (3, WIDTH, 3)
    unrolled = x
    for layer in range(3):
        unrolled = sorted_rows({name: value[layer] for name, value in small.items()}, unrolled)
    assert difference(plan.compact(fn)(small, x), unrolled * 0.5) < 1e-5
    assert gradient_error(plan, fn, params, x) < 1e-4


def test_a_router_is_left_with_as_many_experts_as_it_chooses():
    form = FORMS["dense"]
    params, x = parameters(form), inputs()
    groups = jp.find_groups(form.fn, params, x)
    group = experts_of(groups)
    assert "5 (top 2)" in str(groups)
    others = [other.name for other in groups if other is not group]
    plan = jp.plan_removal(groups, params, 0.6, budget="units", exclude=others)
    assert plan.small_shapes["router"] == (WIDTH, 2)
    with pytest.raises(ValueError, match=r"the units that routers choose \(2 of 'b\[0\]'\)"):
        jp.plan_removal(groups, params, 0.9, budget="units", exclude=others)
    only = np.arange(EXPERTS) == 2
    with pytest.raises(ValueError, match=r"`keep` must keep at least 2 units of group 'b\[0\]'.*top_k"):
        jp.surgery.plan_units(groups, {group: only})
    masks = jax.tree.map(lambda x: True, params) | {
        "router": only[None],
        "up": only[:, None, None],
        "down": only[:, None, None],
        "b": only[:, None],
    }
    with pytest.raises(ValueError, match=r"`masks` must keep at least 2 units of group 'b\[0\]'"):
        jp.plan_from_masks(groups, masks)
    structure = jp.Coupled(groups, exclude=tuple(others))
    masks = jp.make_masks(jp.scores.magnitude(params), 0.6, structure=structure)
    assert jp.plan_from_masks(groups, masks).small_shapes["router"] == (WIDTH, 2)
    with pytest.raises(ValueError, match=r"2 of the 5 units at 'b\[0\]', but `sparsity` prunes 4"):
        jp.make_masks(jp.scores.magnitude(params), 0.8, scope="local", structure=structure)


def test_a_plan_for_another_router_is_refused():
    def fn(k):
        def of(p, x):
            best, expert = lax.top_k(x @ p["router"], k)
            gates = combined(p, jax.nn.softmax(best), expert)
            return jnp.einsum("te,td,edf->tf", gates, x, p["up"])

        return of

    params, x = weights(router=(WIDTH, EXPERTS), up=(EXPERTS, WIDTH, 3)), inputs()
    groups = jp.find_groups(fn(1), params, x)
    plan = jp.surgery.plan_units(groups, {experts_of(groups): np.arange(EXPERTS) < 2})
    with pytest.raises(ValueError, match="keeps 2 of 5 units of which 3 are chosen"):
        plan.compact(fn(3))(plan.shrink(params), x)


def test_two_argmaxes_one_after_the_other_choose_two():
    form = FORMS["capacity, top 2"]
    groups = jp.find_groups(form.fn, parameters(form), inputs())
    assert experts_of(groups).chosen == 2


@pytest.mark.slow
def test_experts_are_pruned_while_training_and_the_optimizer_shrinks():
    form = FORMS["sorted rows"]
    params, x = parameters(form), inputs()
    groups = jp.find_groups(form.fn, params, x)
    structure = jp.Coupled(groups, exclude=tuple(g.name for g in groups if not g.chosen))
    masked = jp.masked_fn(form.fn, groups)
    schedule = jp.schedules.cubic(0.6, begin=1, end=6)
    optimizer = jp.gradual(optax.adam(1e-2), schedule, structure=structure)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        loss = lambda p: jnp.mean((masked(p, jp.get_masks(state), x) - jnp.sin(x)) ** 2)  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(8):
        params, state = step(params, state)
    masks = jp.get_masks(state)
    plan = jp.plan_from_masks(groups, masks)
    assert plan.small_shapes["router"] == (WIDTH, 2)
    small = plan.shrink(params)
    assert difference(plan.compact(form.fn)(small, x), masked(params, masks, x)) < 1e-5
    moments = plan.shrink_opt_state(state.inner_state)[0]
    assert jax.tree.map(jnp.shape, moments.mu) == jax.tree.map(jnp.shape, small)


def uses(name):
    """What else a model does with the positions of the experts that are chosen, or with the router's scores."""

    def fn(p, x):
        logits = x @ p["router"]
        _, expert = lax.top_k(logits, 2)
        y = x @ p["up"]
        extra = OTHER_USES[name][0](p, logits, expert)
        return y, extra

    return fn


OTHER_USES = {
    "an output": (lambda p, logits, expert: expert, "are an output"),
    "numbers": (lambda p, logits, expert: expert * 1.5, "are used as numbers in convert_element_type"),
    "a product": (lambda p, logits, expert: expert * 2, "are used as numbers in mul"),
    "one expert by its number": (lambda p, logits, expert: expert == 2, "are compared with other numbers"),
    "labels": (lambda p, logits, expert: expert == jnp.array([[1, 2]]), "are compared with other numbers"),
    "a sum": (lambda p, logits, expert: expert.sum(), "are used as numbers in reduce_sum"),
    "a cumulative sum": (lambda p, logits, expert: jnp.cumsum(expert), "are used as numbers in cumsum"),
    "another table": (lambda p, logits, expert: jnp.arange(7.0)[expert], "are used as numbers in gather"),
    "flat positions": (
        lambda p, logits, expert: jnp.zeros(20).at[expert * 4 + 1].add(1.0),
        "are used as numbers in mul",
    ),
    "a branch": (
        lambda p, logits, expert: lax.switch(
            expert[0, 0], [jnp.sin, jnp.cos, jnp.sin, jnp.cos, jnp.tan], 1.0
        ),
        "choose a branch",
    ),
    "a loop's carry": (
        lambda p, logits, expert: lax.fori_loop(0, 3, lambda i, c: c[::-1], expert),
        "are carried through a loop",
    ),
    "a callback": (
        lambda p, logits, expert: jax.pure_callback(
            np.sin, jax.ShapeDtypeStruct((), jnp.float32), expert[0, 0]
        ),
        "has no rule",
    ),
    "two axes in one": (
        lambda p, logits, expert: jax.nn.one_hot(
            jnp.argmax((logits[:, :, None] * logits[:, None]).reshape(len(logits), -1), -1), 25
        ).sum(1),
        "count units of several kinds",
    ),
}


@pytest.mark.parametrize("name", OTHER_USES)
def test_other_uses_of_positions_freeze_the_experts_and_say_why(name):
    params, x = weights(router=(WIDTH, EXPERTS), up=(WIDTH, 3)), inputs()
    groups = jp.find_groups(uses(name), params, x)
    reasons = [f.reason for f in groups.frozen if "router[1]" in map(str, f.members)]
    assert not [group for group in groups if "router" in group.name], str(groups)
    assert len(reasons) == 1
    assert OTHER_USES[name][1] in reasons[0], reasons


def harmless(name):
    def fn(p, x):
        weight, expert = top_2(p, x, 0.0)
        gates = HARMLESS[name](p, weight, expert)
        return jnp.einsum("te,td,edf->tf", gates, x, p["up"])

    return fn


def _dropped_by(number):
    def gates(p, weight, expert):
        """Tokens whose second weight is small use no second expert: an index that is no expert's."""
        second = jnp.where(weight[:, 1] > 0.3, expert[:, 1], number(p))
        return combined(p, weight, jnp.stack([expert[:, 0], second], 1))

    return gates


HARMLESS = {
    "beyond the last": _dropped_by(lambda p: 5),
    "below the first": _dropped_by(lambda p: -1),
    "rows of an identity": lambda p, weight, expert: (
        jnp.eye(p["router"].shape[1])[expert] * weight[..., None]
    ).sum(1),
    "clipped": lambda p, weight, expert: combined(p, weight, jnp.clip(expert, 0, 4)),
    "sorted": lambda p, weight, expert: combined(p, *lax.sort((expert, weight), num_keys=1)[::-1]),
    "compared with each other": lambda p, weight, expert: (
        combined(p, weight, expert) * (expert[:, :1] < expert[:, 1:])
    ),
    "scattered out of bounds": lambda p, weight, expert: (
        jnp.zeros((len(weight), p["router"].shape[1]))
        .at[jnp.arange(len(weight))[:, None], jnp.where(weight > 0.3, expert, 5)]
        .add(weight, mode="drop")
    ),
    "through a cond": lambda p, weight, expert: (
        lax.cond(weight.sum() > 0, lambda e: e, lambda e: e[:, ::-1], expert)[:, :, None]
        .__eq__(jnp.arange(p["router"].shape[1]))
        .astype(jnp.float32)
        .sum(1)
    ),
    "through a scan": lambda p, weight, expert: lax.scan(
        lambda c, row: (c, (row[1][:, None] * jax.nn.one_hot(row[0], p["router"].shape[1])).sum(0)),
        0.0,
        (expert, weight),
    )[1],
    "before or at": lambda p, weight, expert: (
        (expert[:, :1] <= jnp.arange(p["router"].shape[1])) * weight[:, :1]
    ),
}


@pytest.mark.slow_beyond(4)
@pytest.mark.parametrize("name", HARMLESS)
def test_positions_may_be_moved_sorted_compared_and_replaced_by_none(name):
    params, x = weights(router=(WIDTH, EXPERTS), up=(EXPERTS, WIDTH, 3)), inputs()
    fn = harmless(name)
    groups = jp.find_groups(fn, params, x)
    plan = jp.surgery.plan_units(groups, {experts_of(groups): KEEP})
    assert plan.verify(fn, params, x, tolerance=1e-5).ok
    masked = jp.masked_fn(fn, groups)(params, plan.masks(params), x)
    assert difference(plan.compact(fn)(plan.shrink(params), x), masked) < 1e-5


def test_a_clip_that_makes_no_expert_the_last_one_freezes():
    def fn(p, x):
        weight, expert = top_2(p, x, 0.0)
        expert = jnp.minimum(jnp.where(weight > 0.3, expert, 5), 4)
        return jnp.einsum("te,td,edf->tf", combined(p, weight, expert), x, p["up"])

    groups = jp.find_groups(fn, weights(router=(WIDTH, EXPERTS), up=(EXPERTS, WIDTH, 3)), inputs())
    assert not any(group.chosen for group in groups)
    assert re.search("positions on it are used as numbers in min", str(groups))


def test_a_vocabulary_stays_frozen():
    params = weights(embed=(11, 6), head=(6, 11))

    def fn(p, tokens):
        logits = p["embed"][tokens] @ p["head"]
        return jnp.argmax(logits, -1), logits

    groups = jp.find_groups(fn, params, jnp.zeros((2, 3), jnp.int32))
    assert all(group.size == 6 for group in groups)


def test_entries_of_a_code_book_are_units():
    """Vector quantization: the nearest entry by an argmin."""
    params, x = weights(codes=(EXPERTS, WIDTH), out=(WIDTH, 2)), inputs()

    def fn(p, x):
        distance = ((x[:, None] - p["codes"]) ** 2).sum(-1)
        return p["codes"][jnp.argmin(distance, -1)] @ p["out"]

    groups = jp.find_groups(fn, params, x)
    plan = jp.surgery.plan_units(groups, {experts_of(groups): KEEP})
    small = plan.shrink(params)
    assert difference(plan.compact(fn)(small, x), fn(small, x)) < 1e-6
    assert difference(jp.masked_fn(fn, groups)(params, plan.masks(params), x), fn(small, x)) < 1e-5


def test_tokens_that_experts_choose_are_added_without_those_of_removed_experts():
    """Expert choice: top_k over the tokens, whose axis stays."""
    params = weights(router=(WIDTH, EXPERTS), up=(EXPERTS, WIDTH, WIDTH), b=(EXPERTS, WIDTH))

    def fn(p, x):
        weight, token = lax.top_k((x @ p["router"]).T, 3)
        rows = jnp.einsum("ecd,edf->ecf", x[token], p["up"]) + p["b"][:, None]
        return jnp.zeros_like(x).at[token].add(rows * weight[..., None])

    x = inputs()
    groups = jp.find_groups(fn, params, x)
    (group,) = [group for group in groups if group.size == EXPERTS]
    plan = jp.surgery.plan_units(groups, {group: KEEP})
    small = plan.shrink(params)
    assert difference(plan.compact(fn)(small, x), fn(small, x)) < 1e-6
    assert plan.verify(fn, params, x).ok


def test_experts_of_a_loop_are_branches():
    """Each is a set of parameters of its own: the router keeps its column, and gives its weight to nothing."""
    params = {
        "router": weights(w=(WIDTH, EXPERTS))["w"],
        "experts": [weights(e, up=(WIDTH, HIDDEN), down=(HIDDEN, WIDTH)) for e in range(EXPERTS)],
    }

    def fn(p, x, without=None):
        gates = combined({"router": params["router"]}, *top_2(p, x, 0.0))
        for e, expert in enumerate(p["experts"]):
            if e != without:
                x = x + gates[:, e : e + 1] * (jax.nn.silu(x @ expert["up"]) @ expert["down"])
        return x

    x = inputs()
    assert not any(group.chosen for group in jp.find_groups(fn, params, x))
    branches = jp.find_branches(fn, params, x)
    assert list(branches.keys()) == [f"experts/{e}" for e in range(EXPERTS)]
    plan = jp.plan_layers(
        branches, params, number=1, score={f"experts/{e}": abs(e - 2) for e in range(EXPERTS)}
    )
    assert difference(plan.compact(fn)(plan.shrink(params), x), fn(params, x, without=2)) < 1e-6


def test_group_sizes_that_are_inputs_freeze_the_experts_of_a_ragged_product():
    params = weights(up=(EXPERTS, WIDTH, 4), out=(4, 2))
    fn = lambda p, x, counts: jnp.tanh(lax.ragged_dot(x, p["up"], counts)) @ p["out"]  # noqa: E731
    groups = jp.find_groups(fn, params, inputs(), jnp.array([1, 2, 2, 2, TOKENS - 7]))
    assert [group.size for group in groups] == [4]


def test_a_ragged_product_with_a_result_for_each_group():
    """The gradient of experts: rows of one group are contracted with each other."""
    params, x = weights(router=(WIDTH, EXPERTS), a=(WIDTH, 3), mix=(EXPERTS,), out=(3, 2)), inputs()
    numbers = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], [])

    def fn(p, x):
        expert = jnp.argmax(x @ p["router"], -1)
        order = jnp.argsort(expert)
        rows = jnp.tanh(x[order] @ p["a"])
        grams = lax.ragged_dot_general(rows, rows, jnp.bincount(expert, length=p["router"].shape[1]), numbers)
        return jnp.einsum("eij,e->ij", grams, p["mix"]) @ p["out"]

    groups = jp.find_groups(fn, params, x)
    plan = jp.surgery.plan_units(groups, {experts_of(groups): KEEP})
    small = plan.shrink(params)
    assert difference(plan.compact(fn)(small, x), fn(small, x)) < 1e-6
    assert plan.verify(fn, params, x).ok
