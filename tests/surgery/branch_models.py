"""Residual models by hand, each with a flag for every branch: what is left out is left out in Python."""

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 8


def arrays(shapes, seed=0):
    """A tree of random arrays for a tree of shapes."""
    leaves, treedef = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(treedef, [jnp.asarray(rng.normal(size=s) * 0.3, jnp.float32) for s in leaves])


def norm(p, x):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"]


def attention(p, x):
    q, k, v = (x @ p[n] for n in ("q", "k", "v"))
    return jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / 2.0) @ v @ p["o"]


def mlp(p, x):
    return jax.nn.gelu(x @ p["up"] + p["up_bias"]) @ p["down"] + p["down_bias"]


NORM = {"scale": (WIDTH,), "bias": (WIDTH,)}
ATTENTION = dict.fromkeys(("q", "k", "v", "o"), (WIDTH, WIDTH))
MLP = {"up": (WIDTH, 16), "up_bias": (16,), "down": (16, WIDTH), "down_bias": (WIDTH,)}
LAYER = {"attn": ATTENTION, "mlp": MLP, "ln_1": NORM, "ln_2": NORM}
ENDS = {"embedding": (11, WIDTH), "ln": NORM, "head": (WIDTH, 11)}
IDS = jnp.asarray(np.random.default_rng(1).integers(0, 11, (2, 5)))


def listed(depth=3):
    """Parameters of a model with its layers in a list."""
    return arrays({**ENDS, "layers": [LAYER] * depth})


def stacked(depth=3):
    """The same parameters with the layers stacked."""
    params = listed(depth)
    return {**params, "layers": jax.tree.map(lambda *x: jnp.stack(x), *params["layers"])}


def pre_norm(p, x, without=()):
    if "attn" not in without:
        x = x + attention(p["attn"], norm(p["ln_1"], x))
    return x if "mlp" in without else x + mlp(p["mlp"], norm(p["ln_2"], x))


def post_norm(p, x, without=()):
    x = norm(p["ln_1"], x if "attn" in without else x + attention(p["attn"], x))
    return norm(p["ln_2"], x if "mlp" in without else x + mlp(p["mlp"], x))


def parallel(p, x, without=()):
    normed = norm(p["ln_1"], x)
    out = x
    if "attn" not in without:
        out = out + attention(p["attn"], normed)
    return out if "mlp" in without else out + mlp(p["mlp"], normed)


def language_model(layer, call=lambda f: f):
    """Function (params, ids, without) of a model; `without` has pairs such as (0, "attn")."""

    def fn(params, ids, without=()):
        x = params["embedding"][ids]
        for i, p in enumerate(params["layers"]):
            gone = tuple(name for index, name in without if index == i)
            x = call(lambda p, x, gone=gone: layer(p, x, gone))(p, x)
        return norm(params["ln"], x) @ params["head"]

    return fn


def scanned(params, ids):
    """The pre-norm model with its layers in a scan."""
    x = params["embedding"][ids]
    x, _ = jax.lax.scan(lambda x, p: (pre_norm(p, x), None), x, params["layers"])
    return norm(params["ln"], x) @ params["head"]


def convolution(x, kernel, stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)


RESNET = {
    "stem": (3, 3, 3, 4),
    "block_0": {"conv_0": (3, 3, 4, 4), "conv_1": (3, 3, 4, 4)},
    "block_1": {"conv_0": (3, 3, 4, 8), "conv_1": (3, 3, 8, 8), "shortcut": (1, 1, 4, 8)},
    "head": (8, 5),
}
IMAGES = jnp.asarray(np.random.default_rng(2).normal(size=(2, 8, 8, 3)), jnp.float32)


def resnet(params, images, without=()):
    x = convolution(images, params["stem"])
    for name, stride in (("block_0", 1), ("block_1", 2)):
        p = params[name]
        skip = convolution(x, p["shortcut"], stride) if "shortcut" in p else x
        if name not in without:
            skip = skip + convolution(jax.nn.relu(convolution(x, p["conv_0"], stride)), p["conv_1"])
        x = jax.nn.relu(skip)
    return x.mean((1, 2)) @ params["head"]
