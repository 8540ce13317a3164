"""Symbolic sizes: `jax.export` takes the small function wherever it takes the full one."""

import jax
import jax.numpy as jnp
import pytest
from checks import difference, random_plan
from jax import export, lax
from plain_layers import data, weights

import jaxprune as jp


def conv(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def attention(p, x):
    batch, length, _ = x.shape
    q, k, v = jnp.split((x @ p["qkv"]).reshape(batch, length, 3, 8), 3, 2)
    q, k, v = (a.reshape(batch, length, 2, 4) for a in (q, k, v))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    h = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(batch, length, 8) @ p["o"]
    h = (h - h.mean(-1, keepdims=True)) * lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)
    return jax.nn.gelu(h @ p["up"] + jnp.sin(jnp.arange(length)[:, None] * jnp.arange(10.0))) @ p["down"]


def cnn(p, x):
    h = jax.nn.relu(conv(x, p["w"]))
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return h.reshape(h.shape[0], -1) @ p["out"]


def recurrent(p, x):
    def step(h, row):
        return jnp.tanh(row @ p["w"] + h @ p["r"]), None

    return lax.scan(step, jnp.zeros((x.shape[0], 8)), x.swapaxes(0, 1))[0] @ p["out"]


def tokens(p, x):
    h = jax.nn.relu(x.reshape(-1, 3) @ p["w"]).reshape(*x.shape[:2], 8)
    first = jnp.broadcast_to(p["first"], (x.shape[0], 1, 8))
    h = jnp.concatenate([first, h[:, 1:] * h[:, :-1]], 1)
    h = h[:, :, jnp.array([4, 5, 6, 7, 0, 1, 2, 3])] + jnp.pad(h, ((0, 0), (1, 0), (0, 0)))[:, 1:]
    return h.mean(1) @ p["out"]


# function, shapes of its parameters, symbolic sizes, shape of the input, sizes to run at
MODELS = {
    "heads": (
        lambda p, x: jnp.tanh(x @ p["w"]).reshape(x.shape[0], 2, 4).reshape(x.shape[0], 8) @ p["out"],
        {"w": (3, 8), "out": (8, 2)},
        ("b", lambda b: (b, 3), [(1,), (5,)]),
    ),
    "attention": (
        attention,
        {"qkv": (3, 24), "o": (8, 6), "up": (6, 10), "down": (10, 2)},
        ("b, s", lambda b, s: (b, s, 3), [(1, 1), (2, 4)]),
    ),
    "CNN": (cnn, {"w": (3, 3, 2, 6), "out": (24, 2)}, ("b", lambda b: (b, 4, 4, 2), [(3,)])),
    "recurrent": (
        recurrent,
        {"w": (3, 8), "r": (8, 8), "out": (8, 2)},
        ("b", lambda b: (b, 4, 3), [(3,)]),
    ),
    "recurrent over any length": (
        recurrent,
        {"w": (3, 8), "r": (8, 8), "out": (8, 2)},
        ("b, s", lambda b, s: (b, s, 3), [(3, 4), (2, 1)]),
    ),
    "positions": (
        lambda p, x: jnp.tanh(x @ p["w"] + p["positions"][: x.shape[1]]) @ p["out"],
        {"w": (3, 8), "positions": (16, 8), "out": (8, 2)},
        ("b, s", lambda b, s: (b, s, 3), [(2, 4)]),
    ),
    "tokens": (
        tokens,
        {"w": (3, 8), "first": (1, 1, 8), "out": (8, 2)},
        ("b, s", lambda b, s: (b, s + 1, 3), [(1, 1), (2, 4)]),
    ),
}


@pytest.mark.slow_beyond(2)
@pytest.mark.parametrize("name", MODELS)
def test_the_small_function_is_exported_at_symbolic_sizes(name):
    fn, shapes, (symbols, shape, runs) = MODELS[name]
    params = weights(**shapes)
    groups = jp.find_groups(fn, params, data(*shape(*runs[-1])))
    assert len(groups)
    plan = random_plan(groups)
    small, compact = plan.shrink(params), plan.compact(fn)
    specs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), small)
    limits = ["s <= 16"] if "s" in symbols else []
    x_spec = jax.ShapeDtypeStruct(shape(*export.symbolic_shape(symbols, constraints=limits)), jnp.float32)
    exported = export.export(jax.jit(compact))(specs, x_spec)
    for sizes in runs:
        x = data(*shape(*sizes))
        assert difference(exported.call(small, x), jax.jit(compact)(small, x)) < 1e-5


def test_groups_are_found_at_symbolic_sizes():
    fn, shapes, (symbols, shape, runs) = MODELS["attention"]
    x_spec = jax.ShapeDtypeStruct(shape(*export.symbolic_shape(symbols)), jnp.float32)
    of_symbols = jp.find_groups(fn, weights(**shapes), x_spec)
    assert [g.members for g in of_symbols] == [
        g.members for g in jp.find_groups(fn, weights(**shapes), data(*shape(*runs[-1])))
    ]


def test_exports_of_one_function_do_not_share_symbols():
    fn, shapes, _ = MODELS["heads"]
    params = weights(**shapes)
    plan = random_plan(jp.find_groups(fn, params, data(2, 3)))
    small, compact = plan.shrink(params), plan.compact(fn)
    specs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), small)
    for _ in range(2):
        x_spec = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), 3), jnp.float32)
        exported = export.export(jax.jit(compact))(specs, x_spec)
        assert exported.call(small, data(3, 3)).shape == (3, 2)
