"""Small models of the libraries' own modules: Linen, NNX, Equinox, Haiku."""

from __future__ import annotations

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from plain_layers import data

from jaxprune.params import flatten_with_paths


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(x)))
        y = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(6, (3, 3))(x)))
        x = x + nn.BatchNorm(use_running_average=True)(nn.Conv(8, (3, 3))(y))
        x = nn.avg_pool(nn.max_pool(x, (2, 2), (2, 2)), (1, 1))
        return nn.Dense(3)(nn.relu(x).reshape(x.shape[0], -1))


class LinenBlock(nn.Module):
    norm: type = nn.LayerNorm

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(num_heads=3, qkv_features=12)(self.norm()(x))
        return x + nn.Dense(10)(nn.gelu(nn.Dense(14)(self.norm()(x))))


class LinenViT(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(10, (2, 2), strides=(2, 2))(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        cls = self.param("cls", nn.initializers.normal(1.0), (1, 1, 10))
        x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos", nn.initializers.normal(1.0), (1, x.shape[1], 10))
        for _ in range(2):
            x = LinenBlock()(x)
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


class LinenLM(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 10)
        x = embed(tokens)
        x = nn.remat(LinenBlock)(norm=nn.RMSNorm)(x)
        x, _ = nn.scan(
            lambda block, x, _: (block(x), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )(LinenBlock(name="layers"), x, None)
        return embed.attend(x)


class LinenLSTM(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.OptimizedLSTMCell(6))(x)
        return nn.Dense(2)(nn.RNN(nn.GRUCell(5))(x))


class LinenMobile(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu6(nn.Conv(8, (1, 1))(x))
        x = nn.relu6(nn.Conv(16, (3, 3), feature_group_count=8)(x))
        x = nn.GroupNorm(num_groups=4)(x)
        x = nn.ConvTranspose(6, (3, 3), strides=(2, 2))(nn.hard_swish(x))
        return nn.Dense(2)(nn.DenseGeneral(5, axis=(1, 2, 3))(x))


def filled(shapes):
    """Random numbers in place of abstract arrays: initializers take longer to compile than to test."""
    rng = np.random.default_rng(0)
    paths, leaves, treedef = flatten_with_paths(shapes)
    arrays = []
    for path, leaf in zip(paths, leaves, strict=True):
        values = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]) or 1)
        values = 0.5 + np.abs(values) if path.endswith("var") else values
        arrays.append(jnp.asarray(values, leaf.dtype))
    return jax.tree.unflatten(treedef, arrays)


def linen(module, *inputs):
    def make():
        return module.apply, filled(jax.eval_shape(module.init, jax.random.key(0), *inputs)), inputs

    return make


class NnxMlp(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.drop = nnx.Dropout(0.5, deterministic=True)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(2)])
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        x = self.drop(jax.nn.relu(self.norm(self.first(x))))
        for layer in self.layers:
            x = x + jnp.tanh(layer(x))
        return self.last(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.into = nnx.Linear(4, 12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, 12, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.up = nnx.Linear(12, 10, rngs=rngs)
        self.down = nnx.Linear(10, 12, rngs=rngs)
        self.out = nnx.Linear(12, 2, rngs=rngs)

    def __call__(self, x):
        x = self.into(x)
        x = x + self.attention(self.norm(x))
        return self.out(x + self.down(nnx.swish(self.up(x))))


class NnxCnn(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(2, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.second = nnx.Conv(8, 6, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.second(nnx.relu(self.norm(self.first(x))))).mean((1, 2)))


def nnx_model(module_type, *inputs):
    def make():
        graph, state = nnx.split(nnx.eval_shape(lambda: module_type(nnx.Rngs(0))))
        return (lambda state, *inputs: nnx.merge(graph, state)(*inputs)), filled(state), inputs

    return make


class EqxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    pool: eqx.nn.AdaptiveAvgPool2d
    mlp: eqx.nn.MLP

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(2, 8, 3, padding=1, key=a)
        self.norm = eqx.nn.GroupNorm(2, 8)
        self.pool = eqx.nn.AdaptiveAvgPool2d(1)
        self.mlp = eqx.nn.MLP(8, 3, 6, 2, key=b)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.conv(x)))
        return self.mlp(self.pool(x).reshape(-1))


class EqxAttention(eqx.Module):
    embed: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    gru: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 4)
        self.embed = eqx.nn.Embedding(9, 8, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
        self.norm = eqx.nn.LayerNorm(8)
        self.gru = eqx.nn.GRUCell(8, 5, key=keys[2])
        self.out = eqx.nn.Linear(5, 2, key=keys[3])

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        x = jax.vmap(self.norm)(x + self.attention(x, x, x))
        h, _ = jax.lax.scan(lambda h, x: (self.gru(x, h), None), jnp.zeros(5), x)
        return self.out(h)


def eqx_model(module_type, *inputs):
    def make():
        model = eqx.nn.inference_mode(eqx.filter_eval_shape(module_type, jax.random.key(0)))
        arrays, static = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))
        return (lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x)), filled(arrays), inputs

    return make


def haiku_model(net, *inputs):
    def make():
        transformed = hk.without_apply_rng(hk.transform(net))
        return transformed.apply, filled(jax.eval_shape(transformed.init, jax.random.key(0), *inputs)), inputs

    return make


def _haiku_cnn(x):
    x = jax.nn.relu(hk.Conv2D(8, 3)(x))
    x = jax.nn.relu(hk.Conv2D(6, 1)(hk.DepthwiseConv2D(1, 3)(x)))
    x = hk.LayerNorm(-1, True, True)(hk.MaxPool((2, 2, 1), (2, 2, 1), "SAME")(x))
    return hk.nets.MLP([7, 2])(hk.Flatten()(x))


def _haiku_transformer(x):
    x = hk.Linear(8)(x)
    x = x + hk.MultiHeadAttention(2, 4, w_init=hk.initializers.VarianceScaling(1.0))(x, x, x)
    x = x + hk.Linear(8)(jax.nn.gelu(hk.Linear(12)(hk.RMSNorm(-1)(x))))
    x, _ = hk.dynamic_unroll(hk.LSTM(5), x, hk.LSTM(5).initial_state(x.shape[1]), time_major=True)
    return hk.Linear(2)(x)


MODELS = {
    "Linen CNN": linen(LinenCNN(), data(2, 4, 4, 2)),
    "Linen ViT": linen(LinenViT(), data(2, 4, 4, 2)),
    "Linen LM (remat, scan, tied)": linen(LinenLM(), jnp.array([[1, 2, 3, 4], [0, 10, 2, 2]])),
    "Linen LSTM, GRU": linen(LinenLSTM(), data(2, 4, 3)),
    "Linen MobileNet": linen(LinenMobile(), data(2, 4, 4, 3)),
    "NNX MLP": nnx_model(NnxMlp, data(3, 4)),
    "NNX attention": nnx_model(NnxBlock, data(2, 3, 4)),
    "NNX CNN": nnx_model(NnxCnn, data(2, 4, 4, 2)),
    "Equinox CNN": eqx_model(EqxNet, data(2, 2, 4, 4)),
    "Equinox attention, GRU": eqx_model(EqxAttention, jnp.array([[1, 2, 3], [4, 5, 8]])),
    "Haiku CNN": haiku_model(_haiku_cnn, data(2, 4, 4, 2)),
    "Haiku transformer, LSTM": haiku_model(_haiku_transformer, data(3, 2, 5)),
}
