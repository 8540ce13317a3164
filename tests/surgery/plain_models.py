"""Small models as plain functions: each returns (fn, params, inputs)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from plain_layers import (
    attention,
    batch_norm,
    bn_shapes,
    conv,
    data,
    layer_norm,
    rms_norm,
    rope,
    rope_table,
    weights,
)


def mlp():
    def fn(p, x):
        h = jax.nn.relu(x @ p["w1"] + p["b1"])
        h = jnp.tanh(h @ p["w2"] + p["b2"])
        return h @ p["w3"]

    return fn, weights(w1=(3, 8), b1=(8,), w2=(8, 6), b2=(6,), w3=(6, 2)), (data(4, 3),)


def residual_cnn():
    def fn(p, x):
        x = jax.nn.relu(batch_norm(conv(x, p["stem"]), p, "bn0"))
        h = jax.nn.relu(batch_norm(conv(x, p["k1"]), p, "bn1"))
        x = x + batch_norm(conv(h, p["k2"]), p, "bn2")
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(x)
        return x.reshape(x.shape[0], -1) @ p["head"]

    shapes = {
        "stem": (3, 3, 2, 8),
        "k1": (3, 3, 8, 6),
        "k2": (3, 3, 6, 8),
        "head": (2 * 2 * 8, 3),
        **bn_shapes("bn0", 8),
        **bn_shapes("bn1", 6),
        **bn_shapes("bn2", 8),
    }
    return fn, weights(**shapes), (data(2, 4, 4, 2),)


def transformer():
    heads, dim, width = 4, 4, 12

    def fn(p, tokens):
        x = p["embed"][tokens] + p["pos"][: tokens.shape[1]]
        for i in range(2):
            h = layer_norm(x, p[f"s{i}"], p[f"o{i}"])
            q, k, v = ((h @ p[f"{n}{i}"]).reshape(*h.shape[:2], heads, dim) for n in ("q", "k", "v"))
            x = x + attention(q, k, v).reshape(*h.shape[:2], heads * dim) @ p[f"out{i}"]
            x = x + jax.nn.gelu(layer_norm(x, p[f"s{i}"], p[f"o{i}"]) @ p[f"up{i}"]) @ p[f"down{i}"]
        return x @ p["embed"].T

    shapes = {"embed": (11, width), "pos": (16, width)}
    for i in range(2):
        shapes |= {f"{n}{i}": (width, heads * dim) for n in ("q", "k", "v")}
        shapes |= {f"out{i}": (heads * dim, width), f"s{i}": (width,), f"o{i}": (width,)}
        shapes |= {f"up{i}": (width, 10), f"down{i}": (10, width)}
    return fn, weights(**shapes), (jnp.array([[1, 2, 3, 4, 5], [5, 0, 10, 2, 2]]),)


def llama(from_iota=False):
    kv, per, dim, width = 2, 3, 8, 12

    def table(length):
        if not from_iota:
            return rope_table(length, dim)
        frequency = 1.0 / 100.0 ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
        angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency
        return jnp.concatenate([angles, angles], -1)

    def fn(p, x):
        b, t, _ = x.shape
        h = rms_norm(x @ p["in"], p["n1"])
        q = rope((h @ p["q"]).reshape(b, t, kv * per, dim), table(t))
        k = rope((h @ p["k"]).reshape(b, t, kv, dim), table(t))
        v = (h @ p["v"]).reshape(b, t, kv, dim)
        k, v = (jnp.repeat(a, per, axis=2) for a in (k, v))
        mask = jnp.tril(jnp.ones((t, t), bool))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        attn = jax.nn.softmax(jnp.where(mask, scores, -1e9))
        y = jnp.einsum("bhqk,bkhd->bqhd", attn, v).reshape(b, t, -1)
        x = x @ p["in"] + y @ p["o"]
        h = rms_norm(x, p["n2"])
        x = x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]
        return x @ p["head"]

    shapes = {"in": (5, width), "n1": (width,), "n2": (width,), "q": (width, kv * per * dim)}
    shapes |= {"k": (width, kv * dim), "v": (width, kv * dim), "o": (kv * per * dim, width)}
    shapes |= {"gate": (width, 10), "up": (width, 10), "down": (10, width), "head": (width, 3)}
    return fn, weights(**shapes), (data(2, 4, 5),)


def fused_qkv(layout):
    heads, dim, width = 3, 4, 5

    def fn(p, x):
        b, t, _ = x.shape
        h = x @ p["qkv"]
        if layout == "3hd":
            q, k, v = jnp.moveaxis(h.reshape(b, t, 3, heads, dim), 2, 0)
        elif layout == "h3d":
            q, k, v = jnp.split(h.reshape(b, t, heads, 3 * dim), 3, axis=-1)
        else:
            q, k, v = (a.reshape(b, t, heads, dim) for a in jnp.split(h, 3, axis=-1))
        return attention(q, k, v).reshape(b, t, heads * dim) @ p["out"]

    return fn, weights(qkv=(width, 3 * heads * dim), out=(heads * dim, 2)), (data(2, 3, width),)


def lstm():
    def fn(p, x):
        def step(carry, x):
            h, c = carry
            i, f, g, o = jnp.split(x @ p["wx"] + h @ p["wh"] + p["b"], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[1], 6))
        _, hs = lax.scan(step, (zeros, zeros), x)
        return hs @ p["out"]

    return fn, weights(wx=(3, 24), wh=(6, 24), b=(24,), out=(6, 2)), (data(5, 2, 3),)


def depthwise():
    def fn(p, x):
        x = jax.nn.relu(conv(x, p["pw1"]))
        x = jax.nn.relu(conv(x, p["dw"], feature_group_count=8))
        return conv(x, p["pw2"]).mean((1, 2))

    return fn, weights(pw1=(1, 1, 3, 8), dw=(3, 3, 1, 8), pw2=(1, 1, 8, 2)), (data(2, 4, 4, 3),)


def depth_multiplier():
    def fn(p, x):
        x = conv(x, p["pw1"])
        x = jax.nn.relu(conv(x, p["dw"], feature_group_count=6))
        return conv(x, p["pw2"]).mean((1, 2))

    return fn, weights(pw1=(1, 1, 3, 6), dw=(3, 3, 1, 12), pw2=(1, 1, 12, 2)), (data(2, 4, 4, 3),)


def grouped_shuffle(groups=2):
    """ShuffleNet: grouped convolution, channel shuffle, grouped convolution."""

    def fn(p, x):
        x = conv(x, p["pw"])
        x = jax.nn.relu(conv(x, p["g1"], feature_group_count=groups))
        x = x.reshape(*x.shape[:3], groups, -1).swapaxes(3, 4).reshape(x.shape)
        x = jnp.tanh(conv(x, p["g2"], feature_group_count=groups))
        return conv(x, p["head"]).mean((1, 2))

    n = 4 * groups
    shapes = {"pw": (1, 1, 3, n), "g1": (3, 3, 4, n), "g2": (1, 1, 4, n), "head": (1, 1, n, 2)}
    return fn, weights(**shapes), (data(2, 4, 4, 3),)


def squeeze_excite():
    def fn(p, x):
        x = jax.nn.relu(conv(x, p["k1"]))
        gate = jax.nn.sigmoid(jax.nn.relu(x.mean((1, 2)) @ p["s1"]) @ p["s2"])
        return conv(x * gate[:, None, None], p["k2"]).sum((1, 2))

    return fn, weights(k1=(3, 3, 2, 8), s1=(8, 4), s2=(4, 8), k2=(1, 1, 8, 2)), (data(2, 4, 4, 2),)


def unet():
    def fn(p, x):
        a = jax.nn.relu(conv(x, p["d1"]))
        b = jax.nn.relu(conv(a, p["d2"], window_strides=(2, 2)))
        up = lax.conv_transpose(b, p["up"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return conv(jax.nn.relu(conv(jnp.concatenate([up, a], -1), p["u1"])), p["out"])

    shapes = {"d1": (3, 3, 2, 6), "d2": (3, 3, 6, 8), "up": (2, 2, 8, 5), "u1": (3, 3, 11, 7)}
    return fn, weights(**shapes, out=(1, 1, 7, 1)), (data(2, 4, 4, 2),)


def dense_net():
    def fn(p, x):
        x = conv(x, p["stem"])
        for i in range(3):
            h = jax.nn.relu(x * p[f"s{i}"] + p[f"b{i}"])
            x = jnp.concatenate([x, conv(h, p[f"k{i}"])], -1)
        return x.mean((1, 2)) @ p["head"]

    shapes = {"stem": (1, 1, 2, 4), "head": (13, 2)}
    for i in range(3):
        shapes |= {f"k{i}": (3, 3, 4 + 3 * i, 3), f"s{i}": (4 + 3 * i,), f"b{i}": (4 + 3 * i,)}
    return fn, weights(**shapes), (data(2, 4, 4, 2),)


def scanned_layers():
    def fn(p, x):
        def layer(x, w):
            return x + jnp.tanh(x @ w["up"]) @ w["down"], None

        x, _ = lax.scan(layer, x @ p["in"], {"up": p["up"], "down": p["down"]})
        return x @ p["out"]

    return fn, weights(**{"in": (3, 5)}, up=(4, 5, 6), down=(4, 6, 5), out=(5, 2)), (data(2, 3),)


def vmapped_members():
    def member(p, x):
        return jnp.tanh(x @ p["w1"]) @ p["w2"]

    def fn(p, x):
        return jax.vmap(member, (0, None))(p, x).mean(0)

    return fn, weights(w1=(3, 4, 6), w2=(3, 6, 2)), (data(2, 4),)


def moe(top_k=False):
    def fn(p, x):
        logits = x @ p["router"]
        if top_k:
            best, where = lax.top_k(logits, 2)
            gates = (jax.nn.one_hot(where, 4) * jax.nn.softmax(best)[..., None]).sum(1)
        else:
            gates = jax.nn.softmax(logits)
        h = jax.nn.relu(jnp.einsum("nd,edf->enf", x, p["up"]))
        return jnp.einsum("enf,efd,ne->nd", h, p["down"], gates)

    return fn, weights(router=(5, 4), up=(4, 5, 6), down=(4, 6, 5)), (data(3, 5),)


def rematted():
    def fn(p, x):
        @jax.checkpoint
        def block(x):
            return jax.nn.relu(x @ p["w1"])

        return jax.nn.softplus(block(x)) @ p["w2"]

    return fn, weights(w1=(3, 8), w2=(8, 2)), (data(4, 3),)


def custom_vjp():
    @jax.custom_vjp
    def clipped(x, w):
        return x @ w

    clipped.defvjp(
        lambda x, w: (x @ w, (x, w)),
        lambda res, g: (jnp.clip(g, -0.1, 0.1) @ res[1].T, res[0].T @ jnp.clip(g, -0.1, 0.1)),
    )

    def fn(p, x):
        return jnp.sin(clipped(clipped(x, p["w1"]), p["w2"])) @ p["w3"]

    return fn, weights(w1=(3, 8), w2=(8, 6), w3=(6, 2)), (data(4, 3),)


def loops():
    def fn(p, x):
        h = x @ p["in"]
        h = lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["w"] + i), h)
        h = lax.cond(h.sum() > 0, lambda h: h @ p["a"], lambda h: jnp.sin(h) @ p["a"], h)
        h = lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * p["s"]), (0, h))[1]
        return h @ p["out"]

    shapes = {"in": (3, 6), "w": (6, 6), "a": (6, 5), "s": (5,), "out": (5, 2)}
    return fn, weights(**shapes), (data(4, 3),)


def dropout():
    def fn(p, x, key):
        h = jax.nn.relu(x @ p["w1"])
        h = jnp.where(jax.random.bernoulli(key, 0.7, h.shape), h / 0.7, 0)
        return h @ p["w2"]

    return fn, weights(w1=(3, 8), w2=(8, 2)), (data(4, 3), jax.random.key(0))


def padded_shortcut():
    """ResNet option A: the shortcut is padded with zero channels."""

    def fn(p, x):
        x = conv(x, p["stem"])
        y = conv(jax.nn.relu(conv(x, p["k1"])), p["k2"])
        x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 2))) + y
        return jax.nn.relu(x).mean((1, 2)) @ p["head"]

    shapes = {"stem": (1, 1, 2, 4), "k1": (3, 3, 4, 5), "k2": (3, 3, 5, 8), "head": (8, 2)}
    return fn, weights(**shapes), (data(2, 4, 4, 2),)


def slices():
    def fn(p, x):
        h = x @ p["w"]
        a, b = h[..., 0::2], h[..., 1::2]
        rotated = jnp.stack([a * 0.6 - b * 0.8, a * 0.8 + b * 0.6], -1).reshape(h.shape)
        left, right = rotated[..., :6], rotated[..., 6:]
        g = jnp.concatenate([right, jnp.tile(left, (1, 2))], -1)
        return jnp.roll(g, 2, axis=-1) @ p["out"]

    return fn, weights(w=(3, 12), out=(18, 2)), (data(4, 3),)


def unknown_primitive():
    def fn(p, x):
        h = jnp.tanh(x @ p["w1"])
        h = jax.pure_callback(lambda a: np.asarray(a) * 2, jax.ShapeDtypeStruct(h.shape, h.dtype), h)
        return jnp.tanh(h @ p["w2"]) @ p["w3"]

    return fn, weights(w1=(3, 8), w2=(8, 6), w3=(6, 2)), (data(4, 3),)


def softmax_memory():
    """Learned keys and values: a softmax runs over the units themselves."""

    def fn(p, x):
        return jax.nn.softmax(x @ p["keys"].T) @ p["values"]

    return fn, weights(keys=(7, 3), values=(7, 2)), (data(4, 3),)


def conv_1d_3d():
    def fn(p, x):
        h = lax.conv_general_dilated(
            x, p["k1"], (1,), "SAME", rhs_dilation=(2,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        h = jax.nn.relu(h)[:, :, None, None, :] * jnp.ones((1, 1, 2, 2, 1))
        h = lax.conv_general_dilated(
            h, p["k3"], (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        return jax.nn.relu(h).mean((1, 2, 3)) @ p["head"]

    return fn, weights(k1=(3, 2, 6), k3=(3, 1, 1, 6, 5), head=(5, 2)), (data(2, 5, 2),)


def mixed_reductions():
    """Group norm, cumulative sums, min and max over units."""

    def fn(p, x):
        h = jax.nn.relu(x @ p["w1"])
        groups = h.reshape(h.shape[0], 2, 4)
        h = (groups / (1 + jnp.sqrt((groups**2).sum(-1, keepdims=True)))).reshape(h.shape)
        h = h @ p["w2"]
        return jnp.stack([h.max(-1), h.min(-1), jnp.cumsum(h, -1) @ p["w3"], jax.nn.logsumexp(h, -1)], -1)

    return fn, weights(w1=(3, 8), w2=(8, 6), w3=(6,)), (data(4, 3),)


def top_k_units():
    def fn(p, x):
        h = jax.nn.relu(x @ p["w1"])
        best, _ = lax.top_k(h, 3)
        return best @ p["w2"]

    return fn, weights(w1=(3, 8), w2=(3, 2)), (data(4, 3),)


MODELS = {
    "mlp": mlp,
    "residual CNN": residual_cnn,
    "transformer": transformer,
    "llama": llama,
    "llama, RoPE from iota": lambda: llama(True),
    "fused QKV (3 h d)": lambda: fused_qkv("3hd"),
    "fused QKV (h 3 d)": lambda: fused_qkv("h3d"),
    "fused QKV (split)": lambda: fused_qkv("split"),
    "LSTM": lstm,
    "depthwise": depthwise,
    "depth multiplier": depth_multiplier,
    "channel shuffle": grouped_shuffle,
    "channel shuffle, 3 groups": lambda: grouped_shuffle(3),
    "squeeze-excite": squeeze_excite,
    "U-Net": unet,
    "DenseNet": dense_net,
    "scanned layers": scanned_layers,
    "ensemble by vmap": vmapped_members,
    "mixture of experts": moe,
    "mixture of experts, top 2": lambda: moe(True),
    "remat": rematted,
    "custom_vjp": custom_vjp,
    "loops": loops,
    "dropout": dropout,
    "padded shortcut": padded_shortcut,
    "slices": slices,
    "unknown primitive": unknown_primitive,
    "softmax over units": softmax_memory,
    "1-D and 3-D convolutions": conv_1d_3d,
    "mixed reductions": mixed_reductions,
    "top_k over units": top_k_units,
}
