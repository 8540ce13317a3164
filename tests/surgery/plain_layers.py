"""Weights, data and layers as plain functions, of which the models are made."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def weights(seed=0, scale=0.5, **shapes):
    """Random parameters by name."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.normal(size=shape) * scale + (0.1 if len(shape) == 1 else 0), jnp.float32)
        for name, shape in shapes.items()
    }


def data(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def conv(x, k, **kw):
    kw = {"padding": "SAME", "window_strides": (1, 1), **kw}
    return lax.conv_general_dilated(x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **kw)


def batch_norm(x, p, name):
    mean, var = p[f"{name}_mean"], p[f"{name}_var"]
    return (x - mean) * lax.rsqrt(jnp.abs(var) + 1e-3) * p[f"{name}_scale"] + p[f"{name}_bias"]


def bn_shapes(name, n):
    return {f"{name}_{k}": (n,) for k in ("mean", "var", "scale", "bias")}


def layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    var = jnp.mean(x * x, -1, keepdims=True) - mean**2
    return (x - mean) * lax.rsqrt(jnp.abs(var) + 1e-3) * scale + bias


def attention(q, k, v):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(4.0)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


def rope_table(length, dim):
    angles = np.arange(length)[:, None] / 100.0 ** (np.arange(dim // 2) / (dim // 2))
    return jnp.asarray(np.concatenate([angles, angles], -1), jnp.float32)


def rope(x, table):
    first, second = jnp.split(x, 2, axis=-1)
    return x * jnp.cos(table)[:, None] + jnp.concatenate([-second, first], -1) * jnp.sin(table)[:, None]


def rms_norm(x, scale):
    return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-3) * scale
