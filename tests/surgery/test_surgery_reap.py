"""Scores of experts by what they add for their tokens, against a computation token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expert_models import (
    EXPERTS,
    FORMS,
    HIDDEN,
    WIDTH,
    by_hand,
    combined,
    inputs,
    parameters,
    sorted_rows,
    top_2,
)
from jax import lax
from plain_layers import weights
from test_surgery_experts import experts_of

import jaxprune as jp


@pytest.mark.slow_beyond(3)
@pytest.mark.parametrize("name", FORMS)
def test_scores_are_those_of_the_tokens_one_by_one(name):
    form = FORMS[name]
    params, x = parameters(form), inputs()
    groups = jp.find_groups(form.fn, params, x)
    batches = [x, inputs(6)[:4]]
    total, count = (sum(both) for both in zip(*(by_hand(name, params, b) for b in batches), strict=True))
    scores = jp.surgery.reap_scores(groups, params, batches)
    assert list(scores) == [experts_of(groups).name]
    np.testing.assert_allclose(scores[experts_of(groups)], total / np.maximum(count, 1), rtol=2e-5)
    frequency = jp.surgery.reap_scores(groups, params, batches, statistic="frequency")
    np.testing.assert_allclose(frequency[experts_of(groups)], count / count.sum(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["jit", "checkpoint", "vmap"])
@pytest.mark.parametrize("name", ["dense", "capacity, top 1", "gathered weights"])
def test_calls_and_batches_are_followed(name, wrap):
    form = FORMS[name]
    params, x = parameters(form), inputs()
    fn = jax.vmap(form.fn, (None, 0)) if wrap == "vmap" else getattr(jax, wrap)(form.fn)
    x = x[None] if wrap == "vmap" else x
    groups = jp.find_groups(fn, params, x)
    total, count = by_hand(name, params, inputs())
    scores = jp.surgery.reap_scores(groups, params, [x])
    np.testing.assert_allclose(scores[experts_of(groups)], total / np.maximum(count, 1), rtol=2e-5)


@pytest.mark.slow
def test_layers_that_share_a_group_pool_their_tokens_and_others_have_their_own_scores():
    shapes = {
        "router": (WIDTH, EXPERTS),
        "up": (EXPERTS, WIDTH, HIDDEN),
        "down": (EXPERTS, HIDDEN, WIDTH),
        "b": (EXPERTS, WIDTH),
    }
    layers = [weights(seed, **shapes) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *layers)

    def one_after_another(p, x):
        return sorted_rows(p["1"], sorted_rows(p["0"], x)) * 0.5

    def scanned(p, x):
        return lax.scan(lambda x, p: (sorted_rows(p, x), None), x, p)[0] * 0.5

    def unrolled(p, x):
        for layer in range(2):
            x = sorted_rows({name: value[layer] for name, value in p.items()}, x)
        return x * 0.5

    x = inputs()
    first = by_hand("sorted rows", layers[0], x)
    second = by_hand("sorted rows", layers[1], sorted_rows(layers[0], x))
    apart = {"0": layers[0], "1": layers[1]}
    groups = jp.find_groups(one_after_another, apart, x)
    scores = jp.surgery.reap_scores(groups, apart, [x])
    for number, (total, count) in enumerate((first, second)):
        (group,) = (g for g in groups if g.chosen and g.members[0].path.startswith(str(number)))
        np.testing.assert_allclose(scores[group], total / np.maximum(count, 1), rtol=1e-4)
    total, count = first[0] + second[0], first[1] + second[1]
    for fn in (scanned, unrolled):
        groups = jp.find_groups(fn, stacked, x)
        scores = jp.surgery.reap_scores(groups, stacked, [x])
        np.testing.assert_allclose(scores[experts_of(groups)], total / np.maximum(count, 1), rtol=1e-4)


@pytest.mark.slow
def test_outputs_that_are_put_back_in_their_order_before_they_are_weighted():
    """By a scatter, as a gradient does it as well."""

    def fn(p, x):
        best, expert = top_2(p, x, 0.0)
        order, counts = jnp.argsort(expert.ravel()), jnp.bincount(expert.ravel(), length=EXPERTS)
        rows = lax.ragged_dot(jax.nn.silu(lax.ragged_dot(x[order // 2], p["up"], counts)), p["down"], counts)
        back = jnp.zeros_like(rows).at[order].add(rows).reshape(*expert.shape, -1)
        return x + (back * best[..., None]).sum(1)

    params, x = parameters(FORMS["unsorted rows"]), inputs()
    groups = jp.find_groups(fn, params, x)
    total, count = by_hand("unsorted rows", params, x)
    scores = jp.surgery.reap_scores(groups, params, [x])
    np.testing.assert_allclose(scores[experts_of(groups)], total / np.maximum(count, 1), rtol=2e-5)


def test_the_experts_with_the_lowest_scores_are_removed():
    form = FORMS["dense"]
    params, x = parameters(form), inputs()
    groups = jp.find_groups(form.fn, params, x)
    group = experts_of(groups)
    scores = jp.surgery.reap_scores(groups, params, [x])
    others = [other.name for other in groups if other not in scores]
    plan = jp.plan_removal(groups, params, 0.4, score=scores, budget="units", exclude=others)
    by_score = np.argsort(scores[group])
    np.testing.assert_array_equal(np.flatnonzero(~plan.kept["router"][1]), np.sort(by_score[:2]))


def test_bad_input_is_refused():
    form = FORMS["dense"]
    params, x = parameters(form), inputs()
    groups = jp.find_groups(form.fn, params, x)
    with pytest.raises(ValueError, match="`batches` is empty"):
        jp.surgery.reap_scores(groups, params, [])
    with pytest.raises(ValueError, match="`statistic` must be 'reap' or 'frequency', got 'mean'"):
        jp.surgery.reap_scores(groups, params, [x], statistic="mean")
    mlp = jp.find_groups(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], weights(a=(WIDTH, 3), b=(3, 2)), x)
    with pytest.raises(ValueError, match="no group of experts"):
        jp.surgery.reap_scores(mlp, weights(a=(WIDTH, 3), b=(3, 2)), [x])

    def unweighted(p, x):
        _, expert = top_2(p, x, 0.0)
        gates = combined(p, jnp.ones(expert.shape), expert)
        return jnp.einsum("te,td,edf->tf", gates, x, p["up"])

    params = weights(router=(WIDTH, EXPERTS), up=(EXPERTS, WIDTH, 3))
    with pytest.raises(ValueError, match=r"no output of the experts of group '.*' is multiplied by a weight"):
        jp.surgery.reap_scores(jp.find_groups(unweighted, params, x), params, [x])
