"""The input axis of a weight, where the tree determines it: Equinox layers, torch's flat names, biases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from jaxprune.tree_nodes import Leaf, equinox_layer

_BIAS_OF = {"kernel": "bias", "weight": "bias", "w": "b"}
_TORCH_WEIGHT = re.compile(r"(.*_)?weight(_.*)?|original1")
# Names of layers that hold (in, out) in one code and (out, in) in another: GPT-2's Conv1D and transposed convolutions.
_EITHER = re.compile(r"c_attn|c_fc|c_proj|q_attn|.*(transpose|deconv|upconv).*", re.IGNORECASE)


# An axis, or "either" if the tree does not determine which of two it is.
InputAxis = int | Literal["either"]


def input_axes(leaves: Sequence[Leaf]) -> dict[str, InputAxis]:
    """The input axes that a tree determines, by path; all other leaves have JAX's own layouts."""
    shapes = {leaf.path: tuple(getattr(leaf.value, "shape", ())) for leaf in leaves}
    known: dict[str, InputAxis] = {}
    for leaf in leaves:
        axis = _input_axis(leaf, shapes) if len(shapes[leaf.path]) > 1 else None
        if axis is not None:
            known[leaf.path] = axis
    return known


def _input_axis(leaf: Leaf, shapes: dict[str, tuple[int, ...]]) -> InputAxis | None:
    """The axis; None if JAX's own layouts apply."""
    shape = shapes[leaf.path]
    layer = equinox_layer(leaf.holder)
    if layer is not None:
        # (out, in) or (out, in, *kernel), behind the axes of a stack.
        return -1 - leaf.holder.num_spatial_dims if layer.startswith("Conv") else -1
    *parents, name = re.split("[/.]", leaf.path)
    by_bias = _from_bias(leaf.path, name, shapes)
    module = parents[-1] if parents else ""
    if by_bias is not None:
        return by_bias
    if name == "kernel":
        return "either" if _EITHER.fullmatch(module) and shape[0] == shape[-1] and len(shape) == 2 else None
    if not parents or not _TORCH_WEIGHT.fullmatch(name):
        return None
    is_flat = any("." in str(key) for key in leaf.keys)
    if not is_flat or _EITHER.fullmatch(module):
        return "either"
    is_stack = len(shape) == 3 and any(re.search("expert|exps|moe", part) for part in parents)
    return -1 if len(shape) == 2 or is_stack else 1


def _from_bias(path: str, name: str, shapes: dict[str, Any]) -> int | None:
    """The axis that is not an output axis, if a bias beside the weight has the shape of the outputs."""
    bias = shapes.get(path[: len(path) - len(name)] + _BIAS_OF.get(name, ""), ())
    shape = shapes[path]
    if len(shape) == 2 and len(bias) == 1 and shape[0] != shape[1] and bias[0] in shape:
        return -1 if bias[0] == shape[0] else -2
    if len(shape) == 3 and len(bias) == 2 and bias == shape[1:] and bias != (shape[0], shape[2]):
        return -3  # (in, heads, head_dim)
    return None
