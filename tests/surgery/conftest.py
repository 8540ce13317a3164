"""Quick compilation, and a network for scores worked by hand."""

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp


@pytest.fixture(autouse=True, scope="session")
def quick_compilation():
    """These models are small: compiling them takes longer than running them."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def tanh_mlp(p, x):
    return jnp.tanh(x @ p["up"] + p["b"]) @ p["down"]


@pytest.fixture(scope="module")
def hand():
    """Unit 0: (3, 4), 0, (12,); unit 1: (1, 2), 2, (4,)."""
    params = {
        "up": jnp.array([[3.0, 1.0], [4.0, 2.0]]),
        "b": jnp.array([0.0, 2.0]),
        "down": jnp.array([[12.0], [4.0]]),
    }
    return params, jp.find_groups(tanh_mlp, params, jnp.ones((1, 2)))
