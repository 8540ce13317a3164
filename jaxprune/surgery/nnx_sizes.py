"""The sizes that Flax's NNX layers store beside their variables, and how to read them off the variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from flax import nnx

Sizes = dict[str, Any]  # attribute -> value


class View(Protocol):
    """The variables of a layer, by name; "a.b" is the variable b of its part a.

    Variables of stacked layers have further axes in front of the axes that the layer itself describes.
    """

    def shape(self, name: str) -> tuple[int, ...]: ...

    def groups(self, name: str, number: int) -> int:
        """The last axis is divided into `number` equal groups: how many of them keep at least one entry."""
        ...


def sizes_of(layer: Any, view: View) -> Sizes:
    """The sizes of a layer, read off its variables; empty if the layer is not one of Flax's."""
    for kind, read in _READERS:
        if isinstance(layer, kind):
            try:
                return {name: size for name, size in read(layer, view).items() if hasattr(layer, name)}
            except (
                AttributeError,
                IndexError,
                TypeError,
            ):  # a part is missing, or something else stands there
                return {}
    return {}


def _linear(layer: Any, view: View) -> Sizes:
    features_in, features_out = view.shape("kernel")[-2:]
    return {"in_features": features_in, "out_features": features_out}


def _linear_general(layer: Any, view: View) -> Sizes:
    sizes, outs = view.shape("kernel"), len(layer.out_features)
    return {
        "in_features": sizes[-outs - len(layer.in_features) : len(sizes) - outs],
        "out_features": sizes[len(sizes) - outs :],
    }


def _einsum(layer: Any, view: View) -> Sizes:
    found: Sizes = {"kernel_shape": view.shape("kernel")[-len(layer.kernel_shape) :]}
    if layer.bias_shape is not None:
        found["bias_shape"] = view.shape("bias")[-len(layer.bias_shape) :]
    return found


def _conv(layer: Any, view: View) -> Sizes:
    sizes = view.shape("kernel")[-len(layer.kernel_shape) :]
    groups = view.groups("kernel", layer.feature_group_count)
    features = {"in_features": sizes[-2] * groups, "out_features": sizes[-1]}
    return {"kernel_shape": sizes, "feature_group_count": groups, **features}


def _conv_transpose(layer: Any, view: View) -> Sizes:
    sizes = view.shape("kernel")[-len(layer.kernel_shape) :]
    outputs, inputs = sizes[-2:] if layer.transpose_kernel else sizes[:-3:-1]
    return {"kernel_shape": sizes, "in_features": inputs, "out_features": outputs}


def _embed(layer: Any, view: View) -> Sizes:
    return dict(zip(("num_embeddings", "features"), view.shape("embedding")[-2:], strict=True))


def _batch_norm(layer: Any, view: View) -> Sizes:
    return {"num_features": view.shape("mean")[-1]}


def _norm(layer: Any, view: View) -> Sizes:
    return {"num_features": view.shape(_of_features(layer))[-1]}


def _group_norm(layer: Any, view: View) -> Sizes:
    name = _of_features(layer)
    groups = view.groups(name, layer.num_groups)
    return {"num_groups": groups, "group_size": view.shape(name)[-1] // groups}


def _of_features(layer: Any) -> str:
    """The variable with one entry per feature of a norm; reading it raises AttributeError if the norm has none."""
    return "scale" if getattr(layer, "scale", None) is not None else "bias"


def _attention(layer: Any, view: View) -> Sizes:
    features, heads, dim = view.shape("query.kernel")[-3:]
    features_kv, heads_kv, _ = view.shape("key.kernel")[-3:]
    return {
        "in_features": features,
        "num_heads": heads,
        "head_dim": dim,
        "qkv_features": heads * dim,
        "in_kv_features": features_kv,
        "num_kv_heads": heads_kv,
        "out_features": view.shape("out.kernel")[-1],
    }


def _lora(layer: Any, view: View) -> Sizes:
    return {"in_features": view.shape("lora_a")[-2], "out_features": view.shape("lora_b")[-1]}


def _cell(inputs: str, hidden: str) -> Callable[[Any, View], Sizes]:
    def read(layer: Any, view: View) -> Sizes:
        return {"in_features": view.shape(inputs)[-2], "hidden_features": view.shape(hidden)[-2]}

    return read


_READERS: tuple[tuple[Any, Callable[[Any, View], Sizes]], ...] = (
    (nnx.Linear, _linear),
    (nnx.LinearGeneral, _linear_general),
    (nnx.Einsum, _einsum),
    (nnx.Conv, _conv),
    (nnx.ConvTranspose, _conv_transpose),
    (nnx.Embed, _embed),
    (nnx.BatchNorm, _batch_norm),
    ((nnx.LayerNorm, nnx.RMSNorm, nnx.InstanceNorm), _norm),
    (nnx.GroupNorm, _group_norm),
    (nnx.MultiHeadAttention, _attention),
    (nnx.LoRA, _lora),
    (nnx.LSTMCell, _cell("ii.kernel", "hi.kernel")),
    ((nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell), _cell("dense_i.kernel", "dense_h.kernel")),
)
