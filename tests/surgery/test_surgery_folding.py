"""Removed units that are constants: their contribution goes into the next bias, or the call says why not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import difference
from flax import linen as nn
from jax import lax
from library_models import filled
from plain_layers import batch_norm, bn_shapes, conv, data, weights

import jaxprune as jp
from jaxprune.surgery import plan_units

GONE = np.array([1, 4, 6])


def masked(params, *kernels):
    """Zeroes the output channels GONE of some kernels and leaves all else."""
    return {k: v.at[..., GONE].set(0) if k in kernels else v for k, v in params.items()}


def plan_for(fn, params, *inputs, size=8):
    groups = jp.find_groups(fn, params, *inputs)
    return plan_units(groups, {g.name: ~np.isin(np.arange(size), GONE) for g in groups if g.size == size})


def check(fn, params, x, changed):
    """The small function on folded parameters is the full function; only some biases were touched."""
    plan = plan_for(fn, params, x)
    folded = plan.fold_constants(fn, params, x)
    other = -3 * x[::-1] + 0.5
    for inputs in (x, other):
        expected = fn(params, inputs)
        assert difference(plan.compact(fn)(plan.shrink(folded), inputs), expected) < 1e-5
        assert difference(plan.compact(fn)(plan.shrink(params), inputs), expected) > 1e-3
    touched = {k for k in params if not np.array_equal(folded[k], params[k])}
    assert touched == set(changed)
    return folded


def test_dense_by_hand():
    params = {
        "w1": jnp.array([[1.0, 0.0]]),
        "b1": jnp.array([0.5, 2.0]),
        "w2": jnp.array([[1.0, 2.0, 0.0], [3.0, -1.0, 0.0]]),
        "b2": jnp.array([1.0, 1.0, 1.0]),
    }

    def fn(p, x):
        return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]

    x = jnp.array([[1.0], [2.0]])
    plan = plan_units(jp.find_groups(fn, params, x), {"b1[0]": [True, False]})
    folded = plan.fold_constants(fn, params, x)
    np.testing.assert_allclose(folded["b2"], [7.0, -1.0, 1.0])  # plus 2 * (3, -1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("act", [jax.nn.sigmoid, jnp.exp, jax.nn.gelu, lambda x: jax.nn.softplus(x) ** 2])
def test_dense(act):
    def fn(p, x):
        return jnp.sin(act(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]) @ p["w3"]

    params = masked(weights(w1=(3, 8), b1=(8,), w2=(8, 6), b2=(6,), w3=(6, 2)), "w1")
    check(fn, params, data(5, 3), ["b2"])


@pytest.mark.slow
def test_constants_without_any_bias_of_their_own():
    """exp(0) = 1."""

    def fn(p, x):
        return jnp.exp(x @ p["w1"]) @ p["w2"] + p["b2"]

    params = masked(weights(w1=(3, 8), w2=(8, 2), b2=(2,)), "w1")
    folded = check(fn, params, data(5, 3), ["b2"])
    np.testing.assert_allclose(folded["b2"], params["b2"] + params["w2"][GONE].sum(0), rtol=1e-5)


@pytest.mark.slow
def test_two_layers_in_a_row():
    """Units that go in the second layer: their own change does not matter."""

    def fn(p, x):
        h = jnp.tanh(x @ p["w1"] + p["b1"])
        h = jnp.tanh(h @ p["w2"] + p["b2"])
        return h @ p["w3"] + p["b3"]

    params = masked(weights(w1=(3, 8), b1=(8,), w2=(8, 8), b2=(8,), w3=(8, 2), b3=(2,)), "w1", "w2")
    folded = check(fn, params, data(5, 3), ["b2", "b3"])
    np.testing.assert_array_equal(folded["b2"][GONE], params["b2"][GONE])


@pytest.mark.slow
def test_valid_convolution_with_batch_norm_between_and_after():
    """The next kernel has no bias: the mean of its BatchNorm takes the constants."""

    def fn(p, x):
        x = jax.nn.relu(batch_norm(conv(x, p["k1"]), p, "bn1"))
        x = jax.nn.relu(batch_norm(conv(x, p["k2"], padding="VALID"), p, "bn2"))
        return x.mean((1, 2)) @ p["head"] + p["b"]

    shapes = {"k1": (3, 3, 2, 8), "k2": (3, 3, 8, 6), "head": (6, 2), "b": (2,)}
    params = masked(weights(**shapes, **bn_shapes("bn1", 8), **bn_shapes("bn2", 6)), "k1")
    params["bn1_bias"] = params["bn1_bias"] + 2.0
    check(fn, params, data(2, 5, 5, 2), ["bn2_mean"])


@pytest.mark.slow
def test_padding_ends_a_constant_at_the_border():
    def fn(p, x):
        x = jax.nn.relu(conv(x, p["k1"]) + p["b1"])
        return (conv(x, p["k2"]) + p["b2"]).mean((1, 2))

    params = masked(weights(k1=(3, 3, 2, 8), b1=(8,), k2=(3, 3, 8, 2), b2=(2,)), "k1")
    params["b1"] = jnp.abs(params["b1"])
    plan = plan_for(fn, params, data(2, 5, 5, 2))
    with pytest.raises(ValueError, match=r"conv_general_dilated at plain_layers.*zero padding"):
        plan.fold_constants(fn, params, data(2, 5, 5, 2))
    params["k2"] = params["k2"].at[:, :, GONE].set(0)  # what adds nothing can be padded
    folded = plan.fold_constants(fn, params, data(2, 5, 5, 2))
    assert all(np.array_equal(folded[k], params[k]) for k in params)


@pytest.mark.slow
def test_flatten_pool_and_scale_on_the_way():
    """A 1 x 1 kernel without a bias, a mean over positions, a learned scale, flattened into a dense layer."""

    def fn(p, x):
        x = jax.nn.sigmoid(conv(x, p["k1"]) + p["b1"])
        x = conv(x, p["k2"]) * p["gain"] / 3.0
        x = x.reshape(x.shape[0], 2, 2, 2, 2, 6).mean((2, 4)).reshape(x.shape[0], -1)
        return x @ p["w"] + p["b"]

    shapes = {"k1": (3, 3, 2, 8), "b1": (8,), "k2": (1, 1, 8, 6), "gain": (6,), "w": (24, 3), "b": (3,)}
    check(fn, masked(weights(**shapes), "k1"), data(2, 4, 4, 2), ["b"])


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.sigmoid(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        x = nn.relu(nn.Conv(6, (3, 3), padding="VALID")(x))
        x = nn.softplus(nn.Dense(8)(x.reshape(x.shape[0], -1)))
        return nn.DenseGeneral((2, 2))(x)


@pytest.mark.slow
def test_channel_masks_of_a_linen_model_fold_away():
    """What `make_masks` prunes by channel leaves biases behind; folded, the masked model is reproduced."""
    x = data(2, 5, 5, 2)
    module = Linen()
    variables = filled(jax.eval_shape(module.init, jax.random.key(0), x))
    params = jax.tree_util.tree_map_with_path(
        lambda path, w: w.at[..., GONE].set(0) if path[-1].key == "kernel" and w.shape[-1] == 8 else w,
        variables,
    )
    plan = plan_for(module.apply, params, x)
    folded = plan.fold_constants(module.apply, params, x)
    expected = module.apply(params, x)
    assert difference(plan.compact(module.apply)(plan.shrink(folded), x), expected) < 1e-5
    assert difference(plan.compact(module.apply)(plan.shrink(params), x), expected) > 1e-3


@pytest.mark.slow
def test_einsum_in_a_jitted_call_with_a_bias_outside():
    def fn(p, x):
        h = jax.jit(lambda x: jnp.exp(jnp.einsum("bi,ij->bj", x, p["w1"])))(x)
        return jnp.einsum("bj,jhd->bhd", h, p["w2"]) + p["b2"][None].T.reshape(1, 2, 3)

    params = masked(weights(w1=(3, 8), w2=(8, 2, 3), b2=(6,)), "w1")
    check(fn, params, data(5, 3), ["b2"])


@pytest.mark.slow
def test_bfloat16_parameters_keep_their_type():
    def fn(p, x):
        return jnp.exp(x @ p["w1"]) @ p["w2"] + p["b2"]

    params = masked(weights(w1=(3, 8), w2=(8, 2), b2=(2,)), "w1")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    x = data(5, 3).astype(jnp.bfloat16)
    plan = plan_for(fn, half, x)
    folded = plan.fold_constants(fn, half, x, tolerance=0.02)
    assert folded["b2"].dtype == jnp.bfloat16
    assert difference(plan.compact(fn)(plan.shrink(folded), x), fn(half, x)) < 0.03


# What must be refused.


def refused(fn, params, x, message):
    plan = plan_for(fn, params, x)
    with pytest.raises(ValueError, match=message):
        plan.fold_constants(fn, params, x)


def test_a_unit_that_is_no_constant():
    def fn(p, x):
        return jnp.tanh(x @ p["w1"]) @ p["w2"] + p["b2"]

    refused(fn, weights(w1=(3, 8), w2=(8, 2), b2=(2,)), data(5, 3), "not one number .* it is not constant")


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda h, p: h, "reaches an output"),
        (lambda h, p: jnp.tanh(h) + p["b2"], "goes into tanh at test_surgery_folding.py"),
        (lambda h, p: h * h + p["b2"], "goes into mul"),
        (lambda h, p: h + p["b2"] + jnp.sin(p["b2"]), "into 'b2': it is used in 2 places"),
        (lambda h, p: (h + p["b2"]) * 2 + h, "reaches an output"),
    ],
)
def test_no_bias_that_could_take_it(after, message):
    def fn(p, x):
        return after(jnp.exp(x @ p["w1"]) @ p["w2"], p)

    refused(fn, masked(weights(w1=(3, 8), w2=(8, 2), b2=(2,)), "w1"), data(5, 3), message)


def test_a_python_number_takes_nothing_and_nan_is_refused():
    def fn(p, x):
        return jnp.exp(x @ p["w1"]) @ p["w2"] + p["b2"]

    params = masked(weights(w1=(3, 8), w2=(8, 1)), "w1")
    refused(fn, {**params, "b2": 0.5}, data(5, 3), "reaches an output")
    bad = {**params, "b2": jnp.ones(1), "w2": params["w2"].at[GONE[0]].set(jnp.nan)}
    refused(fn, bad, data(5, 3), "is not one number")


def test_other_reductions_over_removed_units():
    def fn(p, x):
        h = jnp.exp(x @ p["w1"])
        return (h / h.max(-1, keepdims=True)) @ p["w2"] + p["b2"]

    params = masked(weights(w1=(3, 8), w2=(8, 2), b2=(2,)), "w1")
    x = -jnp.abs(data(5, 3))
    params["w1"] = -jnp.abs(params["w1"]) * 0 + jnp.where(params["w1"] == 0, 0, 0.3)
    refused(fn, params, x, "reduce_max at .* changes it in a way that no bias can")


@pytest.mark.slow
def test_units_inside_a_loop():
    def fn(p, x):
        h, _ = lax.scan(lambda h, _: (jnp.cos(h @ p["w"] + p["b1"]), None), x @ p["w1"], None, length=2)
        return h @ p["w2"] + p["b2"]

    params = masked(weights(w1=(3, 8), w=(8, 8), b1=(8,), w2=(8, 2), b2=(2,)), "w1", "w")
    refused(fn, params, data(5, 3), "scan at .* changes it")
    silent = {**params, "w": params["w"].at[GONE].set(0), "w2": params["w2"].at[GONE].set(0)}
    plan = plan_for(fn, silent, data(5, 3))
    folded = plan.fold_constants(fn, silent, data(5, 3))
    assert difference(plan.compact(fn)(plan.shrink(folded), data(5, 3)), fn(silent, data(5, 3))) < 1e-6
