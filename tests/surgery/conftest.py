"""These models are small: compiling them takes longer than running them."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def quick_compilation():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
