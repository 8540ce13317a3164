"""The sizes that flax's NNX layers keep beside their variables, and where in the variables they are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

Shape = Callable[[str], tuple[int, ...]]  # name of a variable of a layer, "a.b" of a part of it -> its shape
Sizes = dict[str, Any]  # attribute -> value


def sizes_after(layer: Any, before: Shape, after: Shape, kept: Mapping[str, np.ndarray | None]) -> Sizes:
    """The new sizes of a layer, from the shapes of its variables.

    Args:
      layer: the full layer, of any type.
      before: shapes of its variables. Stacked layers have further axes in front.
      after: their shapes when units are removed.
      kept: for a convolution's kernel ("kernel") and a norm's scale or bias ("features") the mask of its last
        axis, None where all is kept.

    Returns:
      The sizes that change. A layer that is none of flax's, or whose sizes are not found in its variables,
      gives none.
    """
    for kind, read in _READERS:
        if isinstance(layer, kind):
            try:
                old = read(layer, before)
                grouped = _groups(layer, kept)
                new = {**read(layer, after), **grouped}
            except (AttributeError, IndexError, TypeError):  # a part is missing or another type
                return {}
            if isinstance(layer, nnx.Conv):
                new["in_features"] *= grouped.get("feature_group_count", layer.feature_group_count)
                old["in_features"] *= layer.feature_group_count
            return {
                name: value
                for name, value in new.items()
                if hasattr(layer, name) and old.get(name, getattr(layer, name)) == getattr(layer, name)
            }
    return {}


def _groups(layer: Any, kept: Mapping[str, np.ndarray | None]) -> Sizes:
    """Groups of features of which something is left."""
    if isinstance(layer, nnx.Conv) and kept.get("kernel") is not None:
        number = layer.feature_group_count
        return {"feature_group_count": _left(kept["kernel"], number)[0]}
    if isinstance(layer, nnx.GroupNorm) and kept.get("features") is not None:
        groups, size = _left(kept["features"], layer.num_groups)
        return {"num_groups": groups, "group_size": size}
    return {}


def _left(mask: Any, groups: int) -> tuple[int, int]:
    number = int(mask.reshape(groups, -1).any(axis=1).sum())
    return number, int(mask.sum()) // max(number, 1)


def _linear(layer: Any, shape: Shape) -> Sizes:
    features_in, features_out = shape("kernel")[-2:]
    return {"in_features": features_in, "out_features": features_out}


def _linear_general(layer: Any, shape: Shape) -> Sizes:
    sizes, outs = shape("kernel"), len(layer.out_features)
    return {
        "in_features": sizes[-outs - len(layer.in_features) : len(sizes) - outs],
        "out_features": sizes[len(sizes) - outs :],
    }


def _einsum(layer: Any, shape: Shape) -> Sizes:
    found: Sizes = {"kernel_shape": shape("kernel")[-len(layer.kernel_shape) :]}
    if layer.bias_shape is not None:
        found["bias_shape"] = shape("bias")[-len(layer.bias_shape) :]
    return found


def _conv(layer: Any, shape: Shape) -> Sizes:
    sizes = shape("kernel")[-len(layer.kernel_shape) :]
    features = ("in_features", "out_features")
    names = features[::-1] if getattr(layer, "transpose_kernel", False) else features
    return {"kernel_shape": sizes, **dict(zip(names, sizes[-2:], strict=True))}


def _embed(layer: Any, shape: Shape) -> Sizes:
    return dict(zip(("num_embeddings", "features"), shape("embedding")[-2:], strict=True))


def _batch_norm(layer: Any, shape: Shape) -> Sizes:
    return {"num_features": shape("mean")[-1]}


def _norm(layer: Any, shape: Shape) -> Sizes:
    name = next((name for name in ("scale", "bias") if getattr(layer, name, None) is not None), None)
    return {} if name is None else {"num_features": shape(name)[-1]}


def _attention(layer: Any, shape: Shape) -> Sizes:
    features, heads, dim = shape("query.kernel")[-3:]
    features_kv, heads_kv, _ = shape("key.kernel")[-3:]
    return {
        "in_features": features,
        "num_heads": heads,
        "head_dim": dim,
        "qkv_features": heads * dim,
        "in_kv_features": features_kv,
        "num_kv_heads": heads_kv,
        "out_features": shape("out.kernel")[-1],
    }


def _lora(layer: Any, shape: Shape) -> Sizes:
    return {"in_features": shape("lora_a")[-2], "out_features": shape("lora_b")[-1]}


def _cell(inputs: str, hidden: str) -> Callable[[Any, Shape], Sizes]:
    def read(layer: Any, shape: Shape) -> Sizes:
        return {"in_features": shape(inputs)[-2], "hidden_features": shape(hidden)[-2]}

    return read


_READERS: tuple[tuple[Any, Callable[[Any, Shape], Sizes]], ...] = (
    (nnx.Linear, _linear),
    (nnx.LinearGeneral, _linear_general),
    (nnx.Einsum, _einsum),
    ((nnx.Conv, nnx.ConvTranspose), _conv),
    (nnx.Embed, _embed),
    (nnx.BatchNorm, _batch_norm),
    ((nnx.LayerNorm, nnx.RMSNorm, nnx.InstanceNorm, nnx.GroupNorm), _norm),
    (nnx.MultiHeadAttention, _attention),
    (nnx.LoRA, _lora),
    (nnx.LSTMCell, _cell("ii.kernel", "hi.kernel")),
    ((nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell), _cell("dense_i.kernel", "dense_h.kernel")),
)
