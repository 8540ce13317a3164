"""One weight matrix, rows that it multiplies, and the error of pruning it."""

import jax.numpy as jnp
import numpy as np

import jaxprune as jp


def dense(params, x):
    return x @ params["w"]


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def correlated(seed, rows, inputs):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(inputs, inputs)) * np.logspace(0, -1, inputs)
    return jnp.asarray(rng.normal(size=(rows, inputs)) @ mix, jnp.float32)


def error(w, w0, *rows):
    x = np.concatenate([np.asarray(r, np.float64) for r in rows])
    return np.sum((x @ (np.asarray(w, np.float64) - np.asarray(w0, np.float64))) ** 2)


def prune(w, x, *args, fn=dense, **kwargs):
    params, masks = jp.reconstruct(fn, {"w": w}, [x], *args, **kwargs)
    return np.asarray(params["w"]), np.asarray(masks["w"])
