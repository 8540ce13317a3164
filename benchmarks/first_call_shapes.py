"""Trees of shapes, and two networks to train, for `first_call.py`."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxprune import matmul_conv
from jaxprune.experiments.models import LeNet300100

Shapes = dict[str, Any]  # nested, with tuples of ints as leaves


def resnet50() -> Shapes:
    """ResNet-50 as Flax's ImageNet example has it: 161 leaves, 54 of them weights, 25.6 M parameters."""
    shapes: Shapes = {"conv_init": {"kernel": (7, 7, 3, 64)}, "bn_init": _norm(64)}
    width_in, number = 64, 0
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            kernels = [(1, 1, width_in, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            layers: Shapes = {}
            for i, kernel in enumerate(kernels):
                layers |= {f"Conv_{i}": {"kernel": kernel}, f"BatchNorm_{i}": _norm(kernel[-1])}
            if block == 0:
                layers["conv_proj"] = {"kernel": (1, 1, width_in, 4 * width)}
                layers["norm_proj"] = _norm(4 * width)
            shapes[f"BottleneckResNetBlock_{number}"] = layers
            width_in, number = 4 * width, number + 1
    return shapes | {"Dense_0": {"kernel": (2048, 1000), "bias": (1000,)}}


def gpt2_small() -> Shapes:
    """The twelve blocks of GPT-2 small: four matrices and three vectors each, 84 leaves, 85 M parameters.

    Embeddings and the biases of the other three matrices are left out.
    """
    return {
        f"h_{block}": {
            "norm_1": {"scale": (768,)},
            "attention": {"qkv": {"kernel": (768, 2304)}, "out": {"kernel": (768, 768)}},
            "norm_2": {"scale": (768,)},
            "mlp": {"up": {"kernel": (768, 3072), "bias": (3072,)}, "down": {"kernel": (3072, 768)}},
        }
        for block in range(12)
    }


def many_leaves() -> Shapes:
    """400 small weights of 30 shapes."""
    kinds = [(8 * (1 + i % 6), 8 + 4 * (i // 6)) for i in range(30)]
    return {f"layer_{i:03}": {"kernel": kinds[i % 30]} for i in range(400)}


SHAPES = {"ResNet-50": resnet50, "GPT-2 small": gpt2_small, "400 leaves": many_leaves}


class ResNet20(nn.Module):
    """ResNet-20 for 32 x 32 images, convolutions as matrix products: on a CPU the form for a loop.

    References:
      He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, width: int, kernel: int, stride: int) -> jax.Array:
            size, strides = (kernel, kernel), (stride, stride)
            x = nn.Conv(width, size, strides, use_bias=False, conv_general_dilated=matmul_conv)(x)
            return nn.BatchNorm(use_running_average=False)(x)

        x = nn.relu(layer(x, 16, 3, 1))
        for stage, width in enumerate((16, 32, 64)):
            for block in range(3):
                stride = 2 if stage and not block else 1
                inner = layer(nn.relu(layer(x, width, 3, stride)), width, 3, 1)
                x = nn.relu(inner + (x if stride == 1 else layer(x, width, 1, stride)))
        return nn.Dense(10)(x.mean((1, 2)))


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "LeNet-300-100": (LeNet300100(), (28, 28, 1)),
    "ResNet-20": (ResNet20(), (32, 32, 3)),
}


def abstract(shapes: Shapes) -> Any:
    """The parameters as `jax.ShapeDtypeStruct`s of float32."""
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=is_shape)


def random_weights(shapes: Shapes) -> Any:
    """Normal weights, made by NumPy so that JAX has compiled nothing yet."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda w: jax.device_put(rng.standard_normal(w.shape, np.float32)), abstract(shapes))


def _norm(features: int) -> Shapes:
    return {"scale": (features,), "bias": (features,)}
