"""`make_masks(minimum=...)`: no leaf falls under it, the count in all stays exact."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState

import jaxprune as jp


def tree():
    keys = jax.random.split(jax.random.key(0), 2)
    sizes = {"a": (0.01, (6, 8)), "c": (1.0, (4, 3))}
    return {
        n: s * jnp.abs(jax.random.normal(k, shape))
        for k, (n, (s, shape)) in zip(keys, sizes.items(), strict=True)
    }


def reference(scores, sparsity, least):
    """The highest of each leaf are set aside; of the others the lowest go. float64, stable sorts."""
    flat = [np.asarray(s, np.float64).ravel() for s in jax.tree.leaves(scores)]
    keep = [np.ones(f.size, bool) for f in flat]
    open_entries = []
    for leaf, (f, m) in enumerate(zip(flat, least, strict=True)):
        order = np.argsort(f, kind="stable")[: f.size - m]
        open_entries += [(f[i], leaf, i) for i in order]
    for _, leaf, i in sorted(open_entries)[: round(sparsity * sum(f.size for f in flat))]:
        keep[leaf][i] = False
    return keep


@pytest.mark.usefixtures("engine")
def test_hand_worked():
    scores = {"a": jnp.array([[1.0, 2.0, 3.0]]), "c": jnp.array([[4.0, 5.0, 6.0]])}
    assert not jp.make_masks(scores, 0.5)["a"].any()
    masks = jp.make_masks(scores, 0.5, minimum=1)
    assert masks["a"].tolist() == [[False, False, True]] and masks["c"].tolist() == [[False, True, True]]
    masks = jp.make_masks(scores, 1 / 3, minimum=0.5)  # half of three, rounded up
    assert masks["a"].tolist() == [[False, True, True]] and masks["c"].tolist() == [[False, True, True]]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(("minimum", "least"), [(0, [0, 0]), (3, [3, 3]), (0.1, [5, 2])])
def test_against_sorting_with_the_best_set_aside(minimum, least):
    scores = tree()
    jitted = jax.jit(lambda s, p: jp.make_masks(s, p, minimum=minimum))
    for sparsity in (0.0, 0.5, 0.87):
        want = reference(scores, sparsity, least)
        for masks in (jp.make_masks(scores, sparsity, minimum=minimum), jitted(scores, sparsity)):
            for mask, keep in zip(jax.tree.leaves(masks), want, strict=True):
                np.testing.assert_array_equal(np.ravel(mask), keep)


@pytest.mark.slow
def test_share_is_read_as_written():
    """0.07 * 100 is 7.000000000000001 in floats, whose ceiling is 8."""
    scores = {"a": jnp.arange(100.0).reshape(10, 10), "c": 1000 + jnp.arange(100.0).reshape(10, 10)}
    assert int(jp.make_masks(scores, 0.5, minimum=0.07)["a"].sum()) == 7


@pytest.mark.usefixtures("engine")
def test_ties_small_and_empty_leaves():
    scores = {
        "a": jnp.ones((2, 4)),
        "none": jnp.zeros((0, 3)),
        "one": jnp.zeros((1, 1)),
        "w": jnp.full((2, 2), 2.0),
    }
    masks = jp.make_masks(scores, 6 / 13, minimum=2)
    assert masks["one"].all() and masks["w"].all()
    assert masks["a"].tolist() == [[False] * 4, [False, False, True, True]]


@pytest.mark.usefixtures("engine")
def test_units_of_other_structures():
    scores = {
        "a": jnp.ones((4, 3)) * jnp.array([1.0, 2.0, 3.0]),
        "c": jnp.ones((4, 3)) * jnp.array([7.0, 8.0, 9.0]),
    }
    masks = jp.make_masks(scores, 0.5, structure=jp.Channels(), minimum=1)
    assert masks["a"].tolist() == [[False, False, True]] and masks["c"].tolist() == [[False, True, True]]
    masks = jp.make_masks({"w": jnp.ones((8, 4))}, 0.5, structure=jp.NM(2, 4), minimum=16)
    assert jp.sparsity({"w": jnp.ones((8, 4))}, masks) == 0.5


@pytest.mark.usefixtures("engine")
def test_prior_keeps_its_own_and_the_ladder_its_counts():
    scores, masks = tree(), None
    for r in range(1, 6):
        new = jp.make_masks(scores, 1 - 0.7**r, prior=masks, minimum=1)
        kept = [int(m.sum()) for m in jax.tree.leaves(new)]
        assert min(kept) >= 1 and sum(kept) == 60 - round((1 - 0.7**r) * 60)
        if masks is not None:
            assert all(
                bool((old | ~now).all()) for old, now in zip(*map(jax.tree.leaves, (masks, new)), strict=True)
            )
        masks = new


@pytest.mark.usefixtures("engine")
def test_a_leaf_that_fell_under_the_minimum_before_keeps_what_it_has():
    scores = {"a": jnp.array([[1.0, 2.0, 3.0, 4.0]]), "c": jnp.array([[5.0, 6.0, 7.0, 8.0]])}
    prior = {"a": jnp.array([[True, False, False, False]]), "c": True}
    masks = jp.make_masks(scores, 0.5, prior=prior, minimum=2)
    assert masks["a"].tolist() == [[True, False, False, False]] and int(masks["c"].sum()) == 3


@pytest.mark.slow
def test_traced_sparsity_beyond_the_minimum_stops_there():
    scores = tree()
    masks = jax.jit(lambda p: jp.make_masks(scores, p, minimum=2))(0.999)
    assert [int(m.sum()) for m in jax.tree.leaves(masks)] == [2, 2]


@pytest.mark.slow
def test_infinite_scores_under_jit_do_not_pass_the_protected():
    scores = {"w": jnp.array([[1.0, jnp.inf, jnp.inf, jnp.inf]])}
    masks = jax.jit(lambda s: jp.make_masks(s, 0.5, minimum=1))(scores)
    assert masks["w"].tolist() == [[False, False, True, True]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minimum": 20}, "`minimum` keeps 32 of 60 units in all, but `sparsity` prunes 30"),
        (
            {"minimum": 7, "scope": "local"},
            "`minimum` asks for 7 of the 12 units at 'c', but `sparsity` prunes 6",
        ),
        ({"minimum": -1}, "`minimum` must be a whole number or a fraction"),
        ({"minimum": 1.0}, "`minimum` must be a whole number or a fraction in .*number of units"),
        ({"minimum": True}, "`minimum` must be a whole number or a fraction"),
        ({"minimum": float("nan")}, "`minimum` must be a whole number or a fraction"),
        ({"minimum": "1"}, "`minimum` must be a whole number or a fraction"),
    ],
)
def test_contradictions_and_bad_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        jp.make_masks(tree(), 0.5, **arguments)


@pytest.mark.usefixtures("engine")
def test_pattern_that_keeps_less_than_the_minimum():
    with pytest.raises(ValueError, match="`minimum` asks for 17 of the 32 units at 'w'"):
        jp.make_masks({"a": jnp.ones((64, 4)), "w": jnp.ones((8, 4))}, 0.5, structure=jp.NM(2, 4), minimum=17)


@pytest.mark.slow
def test_gradual_and_imp_keep_it():
    params = {"a": jnp.array([[0.1, 0.2, 0.3, 0.4]]), "c": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    tx = jp.gradual(optax.sgd(0.0), jp.schedules.constant(0.5), minimum=1)
    _, state = tx.update(params, tx.init(params), params)
    assert [int(m.sum()) for m in jax.tree.leaves(jp.get_masks(state))] == [1, 3]
    with pytest.raises(ValueError, match="`minimum` keeps 6 of 8 units in all, but `sparsity` prunes 4"):
        jp.gradual(optax.sgd(0.0), jp.schedules.constant(0.5), minimum=3).init(params)

    def train_step(state, batch):
        del batch
        return state, {}

    def experiment(minimum):
        return jp.imp(train_step, lambda key, step: step, steps=1, rounds=2, rate=0.5, minimum=minimum)

    start = TrainState.create(apply_fn=None, params=params, tx=jp.masked(optax.sgd(0.0)))
    state, history = jax.jit(experiment(1).run)(jax.random.key(0), start)
    assert history.kept.tolist() == [8, 4, 2]
    assert [int((w != 0).sum()) for w in jax.tree.leaves(state.params)] == [1, 1]
    with pytest.raises(ValueError, match="`minimum` keeps 4 of 8 units in all, but `sparsity` prunes 6"):
        experiment(2).init(jax.random.key(0), start)
