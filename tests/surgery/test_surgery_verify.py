"""What `plan.verify` calls equal: NaN never is, and a named reduction excuses nothing but its own effect."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from plain_layers import data, weights

import jaxprune as jp
from jaxprune.surgery import plan_units
from jaxprune.surgery.evaluation import interpreter, watching
from jaxprune.surgery.inference.rules import RULES

KEPT = np.arange(8) % 3 != 0


def attend(h):
    """Something that removed units change while they are zero: a softmax over the units."""
    return jax.nn.softmax(h, axis=-1)


@jax.custom_vjp
def custom(h):
    return attend(h)


custom.defvjp(lambda h: (custom(h), h), lambda h, g: (g * h,))


def repeated(h):
    return lax.scan(lambda c, _: (attend(c) * 3, None), h, None, length=2)[0]


def looped(h):
    """The condition sums over units too: how often it runs depends on what it sees of removed ones."""
    return lax.while_loop(lambda c: jnp.sum(jnp.cosh(c)) < 30, lambda c: c + attend(c), h)


def looped_by_member(h):
    return jax.vmap(looped)(h)


def branched(h):
    return lax.cond(jnp.sum(jnp.square(h)) >= 0, attend, jnp.sin, h)


PLACES = {
    "plain": attend,
    "jit": jax.jit(attend),
    "remat": jax.checkpoint(attend),
    "custom derivative": custom,
    "scan": repeated,
    "while": looped,
    "vmapped while": looped_by_member,
    "cond": branched,
}


def model(middle):
    params = weights(up=(3, 8), down=(8, 2))
    return lambda p, x: middle(jnp.tanh(x @ p["up"])) @ p["down"], params, data(4, 3)


def plan_of(fn, params, x, kept=KEPT):
    groups = jp.find_groups(fn, params, x)
    (group,) = groups
    return plan_units(groups, {group.name: kept})


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("place", PLACES)
def test_masking_what_is_named_and_nothing_else_explains_the_difference(place):
    fn, params, x = model(PLACES[place])
    report = plan_of(fn, params, x).verify(fn, params, x)
    assert report.ok and not report.zeroing_is_removal, str(report)
    assert report.explained < 1e-5 < report.zeroed
    assert any("reduce_sum" in name for name in report.differences)
    assert not any("dot_general" in name for name in report.differences)


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("place", ["plain", "scan"])
def test_a_named_reduction_does_not_excuse_another_fault(place, monkeypatch):
    """The interpreter computes tanh wrongly, for the small and the masked function alike."""
    fn, params, x = model(PLACES[place])
    right = interpreter.bind

    def wrong(eqn, args, **changed):
        results = right(eqn, args, **changed)
        return [0.9 * y for y in results] if eqn.primitive.name == "tanh" else results

    monkeypatch.setattr(interpreter, "bind", wrong)
    report = plan_of(fn, params, x).verify(fn, params, x)
    assert report.masked < 1e-6 and report.differences and not report.ok, str(report)


def test_a_rule_that_leaves_removed_units_in_a_reduction_is_caught(monkeypatch):
    fn, params, x = model(attend)
    blind = {**RULES, "reduce_sum": dataclasses.replace(RULES["reduce_sum"], reduces=None)}
    for module in (interpreter, watching):
        monkeypatch.setattr(module, "RULES", blind)
    assert not plan_of(fn, params, x).verify(fn, params, x).ok


@pytest.mark.slow
def test_a_rule_that_cuts_other_units_than_it_should_is_caught(monkeypatch):
    fn, params, x = model(attend)
    first = dataclasses.replace(
        RULES["exp"], evaluate=lambda eqn, args, ins, outs, keep: [jnp.exp(jnp.roll(args[0], 1, -1))]
    )
    monkeypatch.setattr(interpreter, "RULES", {**RULES, "exp": first})
    assert not plan_of(fn, params, x).verify(fn, params, x).ok


@pytest.mark.slow
def test_nan_on_either_side_is_never_equal():
    def divided(p, x):  # a column of zeros by its norm is 0 / 0
        return jnp.tanh(x @ (p["up"] / jnp.linalg.norm(p["up"], axis=0))) @ p["down"]

    _, params, x = model(attend)
    report = plan_of(divided, params, x).verify(divided, params, x)
    assert report.zeroed == np.inf and report.differences and not report.ok

    def nan(p, x):
        return jnp.tanh(x @ p["up"]) @ p["down"] + jnp.nan

    report = plan_of(nan, params, x).verify(nan, params, x)
    assert report.masked == report.zeroed == np.inf and not report.ok


@pytest.mark.slow
def test_infinities_whole_numbers_bools_and_keys_are_compared():
    def outputs(p, x):
        y = jnp.tanh(x @ p["up"]) @ p["down"]
        ones = jnp.where(jnp.arange(2) == 0, jnp.inf, y)
        return ones, jnp.argmax(y, -1), y > 0, jax.random.key(3), -ones

    _, params, x = model(attend)
    assert plan_of(outputs, params, x).verify(outputs, params, x).zeroed < 1e-6

    def counted(p, x):
        return jnp.round(100 * attend(jnp.tanh(x @ p["up"])) @ p["down"]).astype(jnp.int32)

    report = plan_of(counted, params, x).verify(counted, params, x)
    assert report.zeroed == 1 and report.explained == 0 and report.ok

    assert watching.largest_difference([jnp.array([jnp.inf])], [jnp.array([-jnp.inf])]) == jnp.inf
    assert watching.largest_difference([jnp.array([1, 2])], [jnp.array([1, 3])]) == 1
    assert watching.largest_difference([jax.random.key(0)], [jax.random.key(1)]) == 1


@pytest.mark.slow
def test_the_tolerance_follows_the_narrowest_float():
    fn, params, x = model(jnp.tanh)
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    report = plan_of(fn, half, x.astype(jnp.bfloat16)).verify(fn, half, x.astype(jnp.bfloat16))
    assert report.tolerance == 0.0625 and report.ok
    assert plan_of(fn, params, x).verify(fn, params, x).tolerance == 1e-4
    assert plan_of(fn, params, x).verify(fn, params, x, tolerance=0.5).tolerance == 0.5


class TrainedOrNot(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=not self.train)(nn.Dense(8)(x)))
        return nn.Dense(2)(x)


def test_a_plan_from_evaluation_mode_says_how_training_mode_takes_it():
    x = data(5, 3)
    variables = TrainedOrNot(False).init(jax.random.key(0), x)

    def evaluate(variables, x):
        return TrainedOrNot(False).apply(variables, x)

    def train(variables, x):
        return TrainedOrNot(True).apply(variables, x, mutable=["batch_stats"])

    plan = plan_of(evaluate, variables, x)
    with pytest.raises(ValueError, match=r"axis 0 of output 1\. .*pass `state=` to `find_groups`"):
        plan.compact(train)(plan.shrink(variables), x)
    with pytest.raises(ValueError, match="pass `state=` to `find_groups`"):
        plan.verify(train, variables, x)
    tied = dataclasses.replace(plan, state=lambda v, out: (v["batch_stats"], out[1]["batch_stats"]))
    with pytest.raises(
        ValueError, match=r"`state` can't be taken .*dataclasses\.replace\(plan, state=None\)"
    ):
        tied.compact(evaluate)(plan.shrink(variables), x)
