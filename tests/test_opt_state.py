"""Which parameter each array of an optimizer state belongs to, and that pruned weights leave no memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune import sparse_training as st
from jaxprune.opt_state import Owner, owners
from jaxprune.params import flatten_with_paths
from jaxprune.transforms._moments import clear_moments


def owners_by_path(opt_state, params):
    """Path in the state -> path of the parameter, where there is one."""
    found = owners(opt_state, flatten_with_paths(params)[0])
    paths = flatten_with_paths((opt_state,))[0]
    return {path[2:]: own for path, own in zip(paths, found, strict=True) if own is not None}


def test_a_module_called_like_a_field_of_the_state_is_not_mistaken_for_it():
    params = {"w": 0.0, "mu": {"w": 0.0, "count": 0.0}, "trace": {"mu": {"w": 0.0}}}
    found = owners_by_path(optax.adam(0.1).init(params), params)
    want = {}
    for field in ("mu", "nu"):
        for path in ("w", "mu/w", "mu/count", "trace/mu/w"):
            want[f"0/{field}/{path}"] = Owner(path)
    assert found == want


def test_holes_tell_which_of_two_parameters_of_one_name_a_group_trains():
    params = {"w": 0.0, "trace": {"w": 0.0, "trace": {"w": 0.0}}}
    trained = optax.sgd(0.1, momentum=0.9)
    for labels, path in [
        ({"w": "a", "trace": "b"}, "w"),
        ({"w": "b", "trace": {"w": "a", "trace": "b"}}, "trace/w"),
        ({"w": "b", "trace": {"w": "b", "trace": "a"}}, "trace/trace/w"),
    ]:
        state = optax.partition({"a": trained, "b": optax.sgd(0.1)}, labels).init(params)
        assert list(owners_by_path(state, params).values()) == [Owner(path)]


def test_owners_in_states_of_every_kind():
    params = [jnp.ones((3, 2)), jnp.ones(2)]
    assert owners_by_path(optax.sm3(0.1).init(params), params) == {
        "0/mu/0/0": Owner("0", 0),
        "0/mu/0/1": Owner("0", 1),
        "0/mu/1/0": Owner("1", 0),
        "0/nu/0": Owner("0"),
        "0/nu/1": Owner("1"),
    }
    history = owners_by_path(optax.scale_by_lbfgs(2).init({"w": params[0]}), {"w": params[0]})
    assert set(history) == {"params/w", "updates/w", "diff_params_memory/w", "diff_updates_memory/w"}
    linen = {"params": {"nu": {"w": 0.0}}, "batch_stats": {"m": 0.0}}
    assert owners_by_path(optax.sgd(0.1, momentum=0.9).init(linen), linen) == {
        "0/trace/params/nu/w": Owner("nu/w"),
        "0/trace/batch_stats/m": Owner("batch_stats/m"),
    }
    # a state that was made for a part of the parameters
    part = optax.sgd(0.1, momentum=0.9).init({"head": {"w": 0.0}})
    assert owners_by_path(part, {"head": {"w": 0.0}, "body": {"w": 0.0}}) == {
        "0/trace/head/w": Owner("head/w")
    }


def params_of():
    return {
        "body": {"kernel": jax.random.normal(jax.random.key(0), (4, 4)), "bias": jnp.ones(4)},
        "head": {"kernel": jax.random.normal(jax.random.key(1), (4, 2))},
    }


FULL = {"body": {"kernel": True, "bias": True}, "head": {"kernel": False}}
PREFIX = {"body": True, "head": False}
WHERE = {"body": {"kernel": True, "bias": False}, "head": False}
INNER = {
    "partition": lambda labels: optax.partition({True: optax.adam(0.03), False: optax.set_to_zero()}, labels),
    "masked": lambda labels: optax.masked(optax.adam(0.03), labels),
    "selective_transform": lambda labels: optax.selective_transform(
        optax.adam(0.03), freeze_mask=jax.tree.map(lambda train: not train, labels)
    ),
    "history": lambda labels: optax.masked(optax.chain(optax.scale_by_lbfgs(2), optax.scale(-0.03)), labels),
}
WRAPPERS = {
    "gradual": lambda inner: jp.gradual(inner, jp.schedules.one_shot(0.5, step=3), where=WHERE),
    "rigl": lambda inner: st.rigl(inner, 0.5, end=9, every=2, where=WHERE, key=jax.random.key(3)),
    "ac_dc": lambda inner: st.ac_dc(inner, 0.5, begin=1, end=4, every=1, where=WHERE),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "name"),
    [("gradual", "partition"), ("gradual", "history"), ("rigl", "masked"), ("ac_dc", "selective_transform")],
)
def test_a_prefix_of_labels_trains_as_a_label_for_each_leaf_and_leaves_no_memory_of_the_pruned(wrapper, name):
    trained = []
    for labels in (FULL, PREFIX):
        tx, params = WRAPPERS[wrapper](INNER[name](labels)), params_of()
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(5):
            updates, state = update(jax.tree.map(jnp.cos, params), state, params)
            params = optax.apply_updates(params, updates)
        trained.append(params)
        dead = ~np.asarray(jp.get_masks(state)["body"]["kernel"])
        memory = [leaf for leaf in jax.tree.leaves(state.inner_state) if leaf.shape[-2:] == (4, 4)]
        assert len(memory) >= 2 and dead.sum() == 8
        for leaf in memory:
            assert (np.asarray(leaf)[..., dead] == 0).all() and (np.asarray(leaf)[..., ~dead] != 0).any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *trained)


def test_clear_moments_inside_a_partition_whose_parameters_have_holes():
    params = {"w": jnp.ones((2, 2)), "frozen": optax.MaskedNode()}
    state = optax.trace(0.9).init(params)._replace(trace=params)
    cleared = clear_moments(state, params, {"w": jnp.eye(2) > 0, "frozen": optax.MaskedNode()})
    np.testing.assert_array_equal(cleared.trace["w"], np.eye(2))


def test_counts_and_parameters_of_no_axes_are_not_taken_for_each_other():
    params = {"count": jnp.ones(())}
    state = optax.adam(0.1).init(params)
    state = (state[0]._replace(count=jnp.int32(5), mu={"count": jnp.ones(())}), *state[1:])
    cleared = clear_moments(state, params, {"count": jnp.array(False)})
    assert cleared[0].count == 5 and cleared[0].mu["count"] == 0


def test_moments_of_a_narrower_type_keep_it():
    params = {"w": jnp.ones((2, 2))}
    tx = jp.masked(optax.trace(0.5), {"w": jnp.eye(2) > 0})
    state = tx.init(params)
    narrow = optax.tree.map_params(tx, lambda m: m.astype(jnp.bfloat16), state)
    cleared = clear_moments(narrow.inner_state, params, narrow.masks, state.inner_state)
    assert cleared.trace["w"].dtype == jnp.bfloat16


def test_memory_with_all_weights_in_one_row_is_cleared_too():
    params = {"bias": jnp.ones(2), "w": jnp.arange(1.0, 5).reshape(2, 2)}
    masks = {"bias": jnp.array(True), "w": jnp.array([[False], [True]])}
    state = optax.flatten(optax.trace(0.9)).init(params)._replace(trace=jnp.arange(1.0, 7))
    assert clear_moments(state, params, masks).trace.tolist() == [1, 2, 0, 0, 5, 6]
