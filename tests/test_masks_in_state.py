"""Masks in optimizer states: inside partitions, with scalars, and past `optax.tree.map_params`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import sparse_training as st

KEY = jax.random.key(7)
WRAPPERS = {
    "masked": lambda inner: jp.masked(inner, lambda params: jp.make_masks(jp.scores.magnitude(params), 0.5)),
    "gradual": lambda inner: jp.gradual(inner, jp.schedules.constant(0.5)),
    "static": lambda inner: st.static(inner, 0.5, key=KEY),
    "set": lambda inner: st.set(inner, 0.5, end=9, every=2, key=KEY),
    "rigl": lambda inner: st.rigl(inner, 0.5, end=9, every=2, key=KEY),
    "ac_dc": lambda inner: st.ac_dc(inner, 0.5, begin=0, end=2, every=1),
    "ste": lambda inner: st.ste(inner, 0.5),
    "sr_ste": lambda inner: st.sr_ste(inner, jp.NM(1, 2)),
    "top_kast": lambda inner: st.top_kast(inner, 0.5, backward_sparsity=0.25),
    "movement": lambda inner: st.movement(inner, jp.schedules.constant(0.5)),
    "group_lasso": lambda inner: st.group_lasso(inner, 0.05, learning_rate=0.1),
    "slimming": lambda inner: st.slimming(inner, 0.1),
}


def params_of():
    return {
        "body": {"kernel": jnp.arange(1.0, 17).reshape(4, 4), "scale": jnp.ones(4)},
        "head": {"kernel": jnp.ones((4, 2))},
    }


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("name", WRAPPERS)
def test_map_params_reaches_the_moments_and_nothing_else(name):
    tx = optax.chain(optax.clip(1.0), WRAPPERS[name](optax.adam(0.1)))
    params = params_of()
    state = tx.init(params)
    ours, adam = state[1], state[1].inner_state[0]
    ones = jax.tree.map(jnp.ones_like, params)
    state = (state[0], ours._replace(inner_state=(adam._replace(mu=params, nu=ones), *ours.inner_state[1:])))
    new = optax.tree.map_params(tx, lambda leaf: leaf * 2, state)  # bools would become integers
    assert jax.tree.structure(new) == jax.tree.structure(state)
    same(new[1].inner_state[0].mu, jax.tree.map(lambda w: 2 * w, params))
    same(new[1].inner_state[0].nu, jax.tree.map(lambda w: 2 * w, ones))
    same(new[1]._replace(inner_state=()), state[1]._replace(inner_state=()))
    specs = jax.tree.map(lambda w: f"rank {w.ndim}", params)
    placed = optax.tree.map_params(
        tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: "replicated"
    )
    assert placed[1].masks == "replicated" and placed[1].inner_state[0].mu == specs


def test_map_params_inside_and_around_partitions():
    labels = {"body": "a", "head": "b"}
    groups = {"a": jp.masked(optax.adam(0.1)), "b": optax.sgd(0.1, momentum=0.9)}
    for tx in (
        optax.partition(groups, labels),
        jp.gradual(optax.partition(groups, labels), lambda step: 0.5),
    ):
        state = tx.init(params_of())
        new = optax.tree.map_params(tx, lambda leaf: leaf + 1, state)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        same(jp.get_masks(new), jp.get_masks(state))


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    [{"body": "a", "head": "b"}, {"body": {"kernel": "a", "scale": "a"}, "head": {"kernel": "b"}}],
    ids=["prefix", "full"],
)
def test_masks_inside_a_partition_fit_all_parameters_and_go_back(labels):
    params = params_of()
    tx = optax.partition({"a": jp.masked(optax.sgd(0.1)), "b": optax.set_to_zero()}, labels)
    state = tx.init(params)
    top = {"body": {"kernel": params["body"]["kernel"] > 8, "scale": True}, "head": {"kernel": True}}
    state = jp.replace_masks(state, top)
    held = jp.get_masks(state)
    assert jp.sparsity(params, held) == 0.5  # the head is not prunable here
    assert [row.kept for row in jp.summary(params, held).rows] == [8, None, None]
    same(jp.apply_masks(params, held), jp.apply_masks(params, top))
    same(jp.get_masks(jp.replace_masks(state, held)), held)
    later = jp.make_masks(params, 0.75, prior=held)
    assert not np.any(np.asarray(later["body"]["kernel"]) & (np.asarray(params["body"]["kernel"]) <= 8))
    updates, state = tx.update(params, state, params)
    trained = optax.apply_updates(params, updates)
    assert (trained["body"]["kernel"][:2] == 0).all() and (trained["body"]["kernel"][2:] != 0).all()
    assert (trained["head"]["kernel"] == 1).all()


@pytest.mark.slow
def test_masks_of_several_groups_are_one_tree():
    params = params_of()
    tx = optax.partition(
        {"a": jp.masked(optax.sgd(0.1)), "b": jp.masked(optax.adam(0.1))}, {"body": "a", "head": "b"}
    )
    masks = jp.make_masks(jp.scores.magnitude(params), 0.5)
    state = jp.replace_masks(tx.init(params), masks)
    same(jp.get_masks(state), masks)
    updates, _ = tx.update(params, state, params)
    trained = optax.apply_updates(params, updates)
    assert int(sum((w == 0).sum() for w in jax.tree.leaves(trained))) == 12


def test_masks_and_where_of_all_parameters_are_taken_inside_a_partition_unless_they_prune_what_it_hides():
    params, labels = params_of(), {"body": "a", "head": "b"}
    where = {"body": {"kernel": True, "scale": False}, "head": False}
    everywhere = jp.make_masks(jp.scores.magnitude(params), 0.5)
    masks = jp.make_masks(jp.scores.magnitude(params), 0.5, where=where)

    def init(inner):
        return optax.partition({"a": inner, "b": optax.sgd(0.1)}, labels).init(params)

    same(jp.get_masks(init(jp.masked(optax.sgd(0.1), masks)))["body"], masks["body"])
    state = init(jp.gradual(optax.sgd(0.1), jp.schedules.constant(0.5), where=where))
    for fails in (
        lambda: init(jp.masked(optax.sgd(0.1), everywhere)),
        lambda: init(jp.gradual(optax.sgd(0.1), jp.schedules.constant(0.5), where=jp.prunable(params))),
        lambda: jp.replace_masks(state, everywhere),
    ):
        with pytest.raises(ValueError, match="'head/kernel', which this optimizer does not see"):
            fails()


def test_a_parameter_called_masks_is_no_wrapper():
    params = {"masks": {"masks": jnp.ones((2, 2))}}
    assert not jp.has_masks(optax.adam(0.1).init(params))
    state = jp.masked(optax.adam(0.1), {"masks": {"masks": jnp.eye(2) > 0}}).init(params)
    same(jp.get_masks(state), {"masks": {"masks": np.eye(2, dtype=bool)}})


OFF = {"bool": False, "numpy": np.False_, "array": jnp.array(False), "traced": jnp.array(False)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OFF)
def test_a_scalar_false_prunes_its_whole_leaf_everywhere(kind):
    params = {"w": jnp.full((2, 2), 9.0), "v": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    masks = {"w": OFF[kind], "v": jnp.ones((2, 2), bool), "bias": True}

    def results(masks):
        def step(state):
            updates, _ = tx.update(params, state, params)
            return optax.apply_updates(params, updates)["w"]

        tx = jp.masked(optax.adamw(0.1), masks)
        return {
            "apply_masks": jp.apply_masks(params, masks)["w"],
            "masked": step(tx.init(params)),
            "replace_masks": step(jp.replace_masks(jp.masked(optax.adamw(0.1)).init(params), masks)),
            "prior": jp.make_masks(params, 0.5, prior=masks)["w"],
            "prior, not prunable": jp.make_masks(params, 0.5, where={"w": False, "v": True, "bias": False},
                                                 prior=masks)["w"],
            "straight_through": st.straight_through(params, masks)["w"],
            "pruned share": 0.5 - jnp.asarray(jp.sparsity(params, masks)),
        }  # fmt: skip

    found = jax.jit(results)(masks) if kind == "traced" else results(masks)
    for name, left in found.items():
        assert (np.asarray(left) == 0).all(), name
    if kind != "traced":
        assert [row.kept for row in jp.summary(params, masks).rows] == [None, 4, 0]


@pytest.mark.slow
def test_one_training_of_imp_takes_a_scalar_false():
    def train_step(state, batch):
        grads = jax.tree.map(jnp.ones_like, state.params)
        updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state.replace(params=params, opt_state=opt_state), {"loss": batch}

    train_state = pytest.importorskip("flax.training.train_state")
    params = {"w": jnp.ones((2, 2)), "v": jnp.ones((2, 2))}
    for tx in (jp.masked(optax.sgd(0.1)), optax.sgd(0.1)):
        state = train_state.TrainState.create(apply_fn=None, params=params, tx=tx)
        experiment = jp.imp(train_step, lambda key, step: jnp.zeros([]), steps=2, rounds=1)
        trained, row = experiment.train(KEY, state, {"w": False, "v": jnp.eye(2) > 0})
        assert (trained.params["w"] == 0).all() and row.kept == 2 and row.sparsity == 0.75
        np.testing.assert_allclose(trained.params["v"], 0.8 * np.eye(2), rtol=1e-6)


def test_what_optax_calls_a_mask_is_told_from_ours():
    params = params_of()
    bools = jp.prunable(params)
    for masks in (bools, lambda params: jp.prunable(params), {"body": True, "head": False}, False):
        with pytest.raises(ValueError, match=r"In optax\.masked, False leaves a parameter alone"):
            jp.masked(optax.sgd(0.1), masks).init(params)
    all_kept = jp.get_masks(jp.masked(optax.sgd(0.1), True).init(params))
    assert jp.sparsity(params, all_kept) == 0


@pytest.mark.slow
def test_masks_may_be_a_function_or_a_prefix_and_keep_the_shapes_of_the_state():
    params = params_of()
    made = jp.masked(optax.sgd(0.1), lambda p: jp.make_masks(jp.scores.magnitude(p), 0.5)).init(params)
    assert jp.sparsity(params, jp.get_masks(made)) == 0.5
    state = jp.masked(optax.sgd(0.1), {"body": True, "head": np.False_}).init(params)
    assert jp.sparsity(params, jp.get_masks(state)) == 1  # of what is prunable: the head alone
    replaced = jp.replace_masks(made, {"body": {"kernel": np.False_, "scale": True}, "head": True})
    assert jax.tree.map(jnp.shape, replaced) == jax.tree.map(jnp.shape, made)
    assert jp.summary(params, jp.get_masks(replaced)).kept == 8
