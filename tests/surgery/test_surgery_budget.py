"""How many units a plan removes: exactly what the budget asks for, whatever a float says."""

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_layers import data, weights

import jaxprune as jp
from jaxprune.surgery.planning.budget import count, first_level


def mlp(width, bias=False):
    """Each hidden unit has five of the weights, and the outputs' biases belong to no unit."""
    params = weights(up=(3, width), down=(width, 2), **({"b": (2,)} if bias else {}))
    groups = jp.find_groups(
        lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"] + (p["b"] if bias else 0), params, data(1, 3)
    )
    return groups, params


def branches(*widths):
    shapes = {f"{name}{i}": s for i, n in enumerate(widths) for name, s in (("up", (3, n)), ("down", (n, 2)))}
    params = weights(**shapes)

    def fn(p, x):
        return sum(jnp.tanh(x @ p[f"up{i}"]) @ p[f"down{i}"] for i in range(len(widths)))

    return jp.find_groups(fn, params, data(1, 3)), params


def left(plan, name="up"):
    return plan.small_shapes[name][1]


EVERY = list(itertools.product(("local", "global"), ("units", "params", "flops")))


@pytest.mark.parametrize("width", [20, 60])
@pytest.mark.parametrize(("scope", "budget"), EVERY)
def test_like_units_go_in_the_number_that_is_asked_for(width, scope, budget):
    groups, params = mlp(width)
    for percent in range(0, 95, 5):  # 0.05 of 20 is 1, though 1 - 0.95 times 20 lies below
        plan = jp.plan_removal(groups, params, percent / 100, scope, budget=budget)
        assert left(plan) == width - round(Fraction(percent, 100) * width), percent
    third = jp.plan_removal(groups, params, 1 / 3, scope, budget=budget)
    assert left(third) == width - round(width / 3)


@pytest.mark.parametrize(("scope", "budget"), EVERY)
def test_like_units_of_two_groups_and_a_share_in_float32(scope, budget):
    groups, params = branches(10, 10)
    plan = jp.plan_removal(groups, params, np.float32(0.7), scope, budget=budget)
    assert left(plan, "up0") + left(plan, "up1") == 6
    name = next(g.name for g in groups if any(member.path == "up0" for member in g.members))
    plan = jp.plan_removal(groups, params, 0.3, scope, budget=budget, overrides={name: 0.3})
    assert left(plan, "up0") == 7


def test_parameters_of_no_unit_count_and_units_are_rounded():
    groups, params = mlp(60, bias=True)  # 302 parameters
    assert left(jp.plan_removal(groups, params, 0.9)) == 60 - round(0.9 * 302 / 5)
    assert left(jp.plan_removal(groups, params, 0.9, budget="units")) == 6


@pytest.mark.slow
def test_unlike_units_meet_the_budget():
    params = weights(a=(4, 20), b=(20, 12), c=(12, 2))
    groups = jp.find_groups(lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"], params, data(1, 4))
    whole = sum(w.size for w in params.values())
    for scope, share in itertools.product(("local", "global"), (0.2, 0.5, 0.75)):
        plan = jp.plan_removal(groups, params, share, scope)
        assert sum(w.size for w in plan.shrink(params).values()) <= (1 - share) * whole


@pytest.mark.parametrize(("scope", "budget"), EVERY)
def test_what_can_not_be_reached_is_an_error_in_every_scope(scope, budget):
    groups, params = mlp(20)
    assert left(jp.plan_removal(groups, params, 0.9, scope, budget=budget, minimum=2)) == 2
    with pytest.raises(
        ValueError, match=r"can't be reached: with `minimum`=3.* at most 0\.850 can be removed"
    ):
        jp.plan_removal(groups, params, 0.9, scope, budget=budget, minimum=3)
    with pytest.raises(ValueError, match=r"can't be reached.* at most 0\.000 can be removed"):
        jp.plan_removal(groups, params, 0.5, scope, budget=budget, exclude="up")


@pytest.mark.parametrize(("scope", "budget"), EVERY)
def test_rounded_widths_meet_the_budget_too(scope, budget):
    groups, params = mlp(20)
    assert left(jp.plan_removal(groups, params, 0.5, scope, budget=budget, round_to=8)) == 8


def test_a_small_group_at_its_minimum_is_made_up_for():
    groups, params = branches(2, 20)
    plan = jp.plan_removal(groups, params, 0.8, budget="units")  # 2 of 2 would go, but one stays
    assert (left(plan, "up0"), left(plan, "up1")) == (1, 3)


def test_local_shares_are_rounded_in_each_group():
    groups, params = branches(5, 3)
    plan = jp.plan_removal(groups, params, 0.5, budget="units")  # 2.5 and 1.5 are both 2
    assert (left(plan, "up0"), left(plan, "up1")) == (3, 1)


def test_counts_are_those_of_masks_and_levels_are_found_by_bisection():
    assert count(0.545, 100) == round(0.545 * 100) and count(Fraction(1, 2), 5) == 2
    for first in range(1, 6):
        assert first_level(range(6), lambda i, first=first: i >= first) == first


def test_flops_allocation_takes_no_weight_too_many():
    scores = {"w": jax.random.uniform(jax.random.key(0), (3, 50)) + 0.1, "v": jnp.full((2, 5), 9.0)}
    for percent in range(5, 95, 5):
        shares = jp.allocate.flops(scores, percent / 100, {"w": 700, "v": 70})
        taken = round(shares["w"] * 150) * Fraction(700, 150) + round(shares["v"] * 10) * 7
        assert 0 <= taken - Fraction(percent, 100) * 770 < 7


def test_a_round_of_a_schedule_prunes_the_rate_as_it_is_written():
    assert jp.schedules.geometric(0.1, rounds=3)(0) == 0.1  # 1 - (1 - 0.1) is less
    assert jp.schedules.geometric(0.1, rounds=3)(1) == 0.19
    assert jp.schedules.iterative(0.7, rounds=7)(0) == 0.1
    assert jp.schedules.geometric(0.3, rounds=3).final == 0.657
