"""`reconstruct(permute=groups)`: units are reordered first, and the pattern then loses less."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

NM, WANDA = jp.NM(2, 4), jp.MaskOnly("wanda")


def mlp(params, x):
    return jax.nn.relu(x @ params["up"] + params["bias"]) @ params["down"]


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    shapes = {"up": (8, 32), "bias": (32,), "down": (32, 5)}
    params = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    batches = [jnp.asarray(rng.standard_normal((64, 8)), jnp.float32) for _ in range(2)]
    return params, batches, jp.find_groups(mlp, params, batches[0])


def pruned(task, permute, method=WANDA, **more):
    params, batches, _ = task
    found = []
    result = jp.reconstruct(
        mlp, params, batches, structure=NM, method=method, permute=permute, on_layer=found.append, **more
    )
    return (*result, {layer.path: layer.error for layer in found})


@pytest.mark.parametrize("method", [WANDA, jp.SparseGPT()])
def test_masks_have_the_pattern_and_lose_less(task, method):
    _, _, errors = pruned(task, None, method)
    new, masks, lower = pruned(task, task[2], method)
    groups_of_4 = np.asarray(masks["down"]).reshape(8, 4, 5).sum(1)
    assert (groups_of_4 == 2).all()
    assert all(float(jnp.abs(jnp.where(masks[k], 0, new[k])).max()) == 0 for k in ("up", "down"))
    assert lower["down"] < errors["down"]
    assert lower["up"] == pytest.approx(errors["up"], rel=1e-4)  # its inputs are those of the model


def test_kept_weights_are_those_of_the_dense_model_in_another_order(task):
    """The order that brings back the biases, which nothing prunes, brings back the kept weights."""
    new, masks, _ = pruned(task, task[2])
    order = [int(np.flatnonzero(np.asarray(new["bias"]) == b)[0]) for b in np.asarray(task[0]["bias"])]
    assert order != list(range(32))
    for name, axis in (("up", 1), ("down", 0)):
        mask, weight = (np.take(np.asarray(tree[name]), order, axis) for tree in (masks, new))
        np.testing.assert_array_equal(weight, np.where(mask, task[0][name], 0))


def test_fisher_scores_and_a_dense_weight_are_taken_along(task):
    """Fisher scores that are the squared weights weigh all outputs alike, in any order of the units."""
    fisher = {name: jnp.square(value) for name, value in task[0].items()}
    new, masks, _ = pruned(task, task[2], fisher=fisher, sparsity={"up": 0.0, "bias": 0.0, "down": 0.5})
    assert masks["up"] is True or bool(jnp.all(masks["up"]))
    assert not bool(jnp.all(masks["down"]))
    order = [int(np.flatnonzero(np.asarray(new["bias"]) == b)[0]) for b in np.asarray(task[0]["bias"])]
    np.testing.assert_array_equal(np.asarray(new["up"])[:, order], task[0]["up"])


def test_mistakes_are_named(task):
    params, batches, groups = task
    with pytest.raises(ValueError, match="`permute` reorders inputs for a pattern"):
        jp.reconstruct(mlp, params, batches, 0.5, permute=groups)
    with pytest.raises(TypeError, match="`permute` must be what"):
        jp.reconstruct(mlp, params, batches, structure=NM, permute=True)
