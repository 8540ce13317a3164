"""Functions that hold a vmap or a gradient: the analysis sees the equations that JAX made of them."""

import jax
import jax.numpy as jnp
import plain_models
import pytest
from checks import random_plan

import jaxprune as jp


def vmapped(fn):
    return lambda p, *inputs: jax.vmap(lambda *one: fn(p, *one))(*(jnp.stack([x, 2 * x]) for x in inputs))


def input_gradient(fn):
    return lambda p, *inputs: jax.grad(lambda x: jnp.sin(fn(p, x, *inputs[1:])).sum())(inputs[0])


@pytest.mark.slow_beyond(1)
@pytest.mark.parametrize("transform", [vmapped, input_gradient])
@pytest.mark.parametrize("name", ["residual CNN", "channel shuffle", "LSTM", "DenseNet", "llama"])
def test_transformed_function(name, transform):
    fn, params, inputs = plain_models.MODELS[name]()
    transformed = transform(fn)
    groups = jp.find_groups(transformed, params, *inputs)
    assert len(groups) >= 2 or (name, transform) == ("LSTM", vmapped)
    report = random_plan(groups).verify(transformed, params, *inputs, tolerance=1e-5)
    assert report.masked < 1e-5 and report.zeroed < 1e-5, str(report)
