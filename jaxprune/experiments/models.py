"""The networks of the experiments, in Flax Linen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax

from jaxprune._matmul_conv import matmul_conv

Name = Literal["mlp", "lenet", "cnn", "vgg"]


class LeNet300100(nn.Module):
    """LeNet-300-100: two hidden layers on flat images (N, ...) -> logits (N, classes).

    References:
      LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998.
    """

    hidden: tuple[int, ...] = (300, 100)
    classes: int = 10

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features, kernel_init=nn.initializers.glorot_normal())(x))
        return nn.Dense(self.classes, kernel_init=nn.initializers.glorot_normal())(x)


class SmallCNN(nn.Module):
    """Two 3 x 3 convolutions, each with a 2 x 2 max pooling, and two dense layers: (N, H, W, C) -> (N, classes).

    H and W must be multiples of 4. `conv` is the convolution: `matmul_conv` for training in a loop on a CPU.
    """

    channels: tuple[int, int] = (16, 32)
    hidden: int = 128
    classes: int = 10
    conv: Callable[..., Any] | None = matmul_conv

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        glorot = nn.initializers.glorot_normal()
        x = images
        for features in self.channels:
            x = nn.Conv(features, (3, 3), kernel_init=glorot, conv_general_dilated=self.conv)(x)
            x = halved(nn.relu(x))
        x = nn.relu(nn.Dense(self.hidden, kernel_init=glorot)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.classes, kernel_init=glorot)(x)


class SmallVGG(nn.Module):
    """A small VGG: one 3 x 3 convolution, then blocks of two, each with a 2 x 2 max pooling. The last block has a
    mean over all positions instead, which one dense layer takes: (N, H, W, C) -> (N, classes).

    H and W must be multiples of 4. `conv` is the convolution: `matmul_conv` for training in a loop on a CPU.

    References:
      Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014,
      arXiv:1409.1556.
    """

    channels: tuple[int, ...] = (8, 16, 32)
    classes: int = 10
    conv: Callable[..., Any] | None = matmul_conv

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        he = nn.initializers.he_normal()
        x = images
        for block, features in enumerate(self.channels):
            x = halved(x) if block else x
            for _ in range(2 if block else 1):
                x = nn.relu(nn.Conv(features, (3, 3), kernel_init=he, conv_general_dilated=self.conv)(x))
        return nn.Dense(self.classes, kernel_init=he)(x.mean(axis=(1, 2)))


def halved(x: jax.Array) -> jax.Array:
    """Maximum over 2 x 2 windows, by reshaping: windowed reductions, too, are slow in a loop on a CPU."""
    n, height, width, channels = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def build(name: Name) -> nn.Module:
    """The network of this name."""
    return {"mlp": LeNet300100, "lenet": LeNet300100, "cnn": SmallCNN, "vgg": SmallVGG}[name]()
