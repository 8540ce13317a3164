"""`scores.gauss_newton`: the diagonal of the Gauss-Newton matrix, estimated with random signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp


def net(params, x):
    return jnp.tanh(x @ params["first"]) @ params["second"] + params["bias"]


def model(rows=3):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "first": jax.random.normal(keys[0], (4, 5)),
        "second": jax.random.normal(keys[1], (5, 2)),
        "bias": jax.random.normal(keys[2], (2,)),
    }
    return params, jax.random.normal(keys[3], (rows, 4))


def diagonal(params, x, weights=None):
    """w^2 times the sum of the squared derivatives of every output, from the whole Jacobian in float64."""
    jacobian = jax.jacobian(net)(params, x)
    weights = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    return {
        name: np.asarray(params[name], np.float64) ** 2
        * np.einsum("ro...,r->...", np.asarray(j, np.float64) ** 2, weights)
        for name, j in jacobian.items()
    }


def test_its_mean_over_signs_is_the_diagonal():
    params, x = model()
    scores = jp.scores.gauss_newton(net, params, [x] * 4000)
    for name in ("first", "second"):
        np.testing.assert_allclose(scores[name], diagonal(params, x)[name], rtol=0.12)
    assert np.isinf(scores["bias"]).all()


def test_one_row_and_one_output_need_no_mean():
    params, x = model(rows=1)
    params = {"first": params["first"], "second": params["second"][:, :1], "bias": params["bias"][:1]}
    scores = jp.scores.gauss_newton(net, params, [x], where={"first": True, "second": True, "bias": True})
    for name, expected in diagonal(params, x).items():
        np.testing.assert_allclose(scores[name], expected, rtol=1e-5)


def test_rows_of_weight_0_do_not_count():
    params, x = model()
    bad = jnp.concatenate([x, jnp.full((1, 4), jnp.nan)])
    weights = jnp.array([1.0, 1.0, 1.0, 0.0])
    here = jp.scores.gauss_newton(net, params, [x], row_weights=lambda x: jnp.ones(3))
    there = jp.scores.gauss_newton(net, params, [bad.at[3].set(9.0)], row_weights=lambda x: weights)
    more = jp.scores.gauss_newton(net, params, [bad.at[3].set(-5.0)], row_weights=lambda x: weights)
    np.testing.assert_allclose(there["first"], more["first"], rtol=1e-5)
    assert here["first"].shape == there["first"].shape


def test_a_pytree_of_outputs_and_leaves_that_are_no_arrays():
    params, x = model()
    params = {**params, "name": "net", "steps": jnp.arange(3)}

    def outputs(params, x):
        y = net(params, x)
        return {"y": y, "label": jnp.argmax(y, -1)}

    scores = jp.scores.gauss_newton(outputs, params, [x])
    same = jp.scores.gauss_newton(lambda p, x: net(p, x), params, [x])
    np.testing.assert_allclose(scores["first"].sum() > 0, True)
    assert scores["name"] == "net" and scores["steps"].dtype == jnp.int32
    assert scores["first"].dtype == same["first"].dtype == jnp.float32


def test_outputs_without_floats_and_no_batches_are_errors():
    params, x = model()
    with pytest.raises(ValueError, match="at least one float array"):
        jp.scores.gauss_newton(lambda p, x: jnp.argmax(net(p, x), -1), params, [x])
    with pytest.raises(ValueError, match="`batches` is empty"):
        jp.scores.gauss_newton(net, params, [])


def test_values_that_are_not_finite_are_named():
    params, x = model()
    with pytest.raises(
        ValueError, match="`params` must have finite values, got NaN or infinite ones at 'second'"
    ):
        jp.scores.gauss_newton(net, {**params, "second": params["second"].at[0, 0].set(jnp.nan)}, [x])
    with pytest.raises(ValueError, match="`batches` must give finite gradients"):
        jp.scores.gauss_newton(net, params, [x.at[0, 0].set(jnp.inf)])
