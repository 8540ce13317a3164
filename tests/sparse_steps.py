"""Steps of sparse training, one operation at a time, and short ways to write masks and weights."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sorted_selection import operation_by_operation


def row(*values, dtype=jnp.float32):
    return jnp.array([values], dtype)


def mask(*values):
    return jnp.array([values], bool)


def kept_places(masks, name="w"):
    return np.flatnonzero(np.asarray(masks[name])).tolist()


def once(tx, grads, state, params):
    with operation_by_operation():
        return tx.update(grads, state, params)


def steps_of(tx, params, grads_of, n, compiled=False):
    """Parameters and states after each of n steps; test_sparse_training_optimizers compares with programs."""
    with contextlib.nullcontext() if compiled else operation_by_operation():
        state, seen = tx.init(params), []
        update = jax.jit(tx.update) if compiled else tx.update
        for t in range(n):
            updates, state = update(grads_of(params, t), state, params)
            params = optax.apply_updates(params, updates)
            seen.append((params, state))
    return seen
