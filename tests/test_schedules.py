"""Schedules: hand-worked values, exact ends, piecewise constant, one behaviour in Python and under jit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

S = jp.schedules
ALL = {
    "constant": S.constant(0.9),
    "one_shot": S.one_shot(0.9, step=3),
    "iterative": S.iterative(0.9, rounds=3, begin=2, every=4),
    "geometric": S.geometric(0.2, rounds=20, begin=1, every=3),
    "linear": S.linear(0.8, begin=2, end=22, every=5, initial=0.1),
    "cubic": S.cubic(0.9, begin=10, end=110, every=10),
    "cosine": S.cosine(0.7, begin=0, end=30),
    "exponential": S.exponential(0.99, begin=5, end=45, every=4, initial=0.5),
    "no_ramp": S.cubic(0.9, begin=7, end=7),
}


@pytest.mark.parametrize("name", ALL)
def test_under_jit_as_in_python_monotone_and_ending_exactly(name):
    schedule = ALL[name]
    steps = np.arange(140)
    exact = np.array([schedule(int(t)) for t in steps])
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), exact, atol=3e-7)
    np.testing.assert_allclose(schedule(jnp.int32(12)), exact[12], atol=3e-7)
    assert schedule(jnp.int32(12)).dtype == jnp.float32 and isinstance(schedule(12), float)
    assert (np.diff(exact) >= 0).all()
    assert (exact[: schedule.begin] == 0).all()
    assert (exact[schedule.end :] == schedule.final).all()
    assert float(schedule(jnp.int32(139))) == np.float32(schedule.final)
    assert schedule.name == (name if name != "no_ramp" else "cubic")
    changes = 1 + np.flatnonzero(np.diff(exact))
    assert all(c == schedule.end or (c - schedule.begin) % schedule.every == 0 for c in changes)


def test_end_that_every_does_not_divide_is_reached_at_the_end():
    schedule = S.linear(0.8, begin=0, end=10, every=4)
    assert [round(schedule(t), 3) for t in (3, 4, 8, 9, 10)] == [0, 0.32, 0.64, 0.64, 0.8]


def test_the_ladder_of_rounds_at_a_fifth():
    schedule = S.geometric(0.2, rounds=20)
    kept = {3: 51.20, 7: 20.97, 9: 13.42, 11: 8.59, 12: 6.87, 15: 3.52, 18: 1.80, 20: 1.15}
    assert {r: round(100 * (1 - schedule(r - 1)), 2) for r in kept} == kept


def test_hand_worked_values():
    assert S.cubic(0.9, 0, 100, every=10)(50) == pytest.approx(0.9 - 0.9 * 0.5**3)
    assert S.cosine(0.8, 0, 10)(2) == pytest.approx(0.8 * (1 - math.cos(0.2 * math.pi)) / 2)
    assert S.exponential(0.99, 0, 2)(1) == pytest.approx(0.9)
    assert S.linear(0.9, 0, 4, initial=0.5)(0) == 0.5
    assert [S.iterative(0.6, rounds=2, begin=1, every=2)(t) for t in range(5)] == [0, 0.3, 0.3, 0.6, 0.6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S.linear(0.9, begin=10, end=5), "`end` must not be before `begin`, got begin=10, end=5"),
        (lambda: S.cubic(0.5, 0, 5, initial=0.8), "cannot go backwards"),
        (lambda: S.cosine(90, 0, 5), "`final` must be in .* pass 0.9"),
        (lambda: S.exponential(1.0, 0, 5), "`final` must be in"),
        (lambda: S.constant(1.5), "`sparsity` must be in"),
        (lambda: S.one_shot(0.5, step=-1), "`step` must be a whole number of at least 0"),
        (lambda: S.geometric(0.2, rounds=0), "`rounds` must be a whole number of at least 1"),
        (lambda: S.geometric(1.2, rounds=2), "`rate` must be in"),
        (lambda: S.iterative(0.2, rounds=2, every=0), "`every` must be a whole number"),
        (lambda: S.linear(0.2, begin=0.5, end=2), "`begin` must be a whole number of at least 0"),
    ],
)
def test_bad_schedules(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SHARES = {"a": 0.5, "b": 0.875, "bias": 0.0}


@pytest.mark.parametrize("make", [
    lambda final: S.constant(final), lambda final: S.one_shot(final, step=2),
    lambda final: S.iterative(final, 3, 1, 2), lambda final: S.linear(final, 1, 9, every=2),
    lambda final: S.cubic(final, 1, 9), lambda final: S.cosine(final, 0, 8),
    lambda final: S.exponential(final, 2, 7), lambda final: S.geometric(final, rounds=3, every=2),
])  # fmt: skip
def test_a_tree_of_final_shares_gives_what_each_leaf_gets_alone(make):
    tree = make(SHARES)
    for step in range(11):
        assert tree(step) == {name: make(share)(step) for name, share in SHARES.items()}
        traced = jax.jit(tree)(step)
        assert {name: float(x) for name, x in traced.items()} == pytest.approx(tree(step), abs=3e-7)
    assert tree(100) == tree.final


def test_a_tree_of_initial_shares():
    schedule = S.linear(SHARES, 0, 2, initial={"a": 0.25, "b": 0.375, "bias": 0.0})
    assert schedule(1) == {"a": 0.375, "b": 0.625, "bias": 0.0}
    with pytest.raises(
        ValueError, match=r"`final` must be at least `initial`, got initial=0.3, final=0.0 at 'bias'"
    ):
        S.linear(SHARES, 0, 2, initial=0.3)
    with pytest.raises(ValueError, match=r"`final` must be in \[0, 1\), got 90 at 'b'. .* pass 0.9"):
        S.cubic({"a": 0.1, "b": 90}, 0, 2)
