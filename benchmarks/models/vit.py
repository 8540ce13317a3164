"""A vision transformer with one kernel for queries, keys and values, by default ViT-S/16.

It has no position embedding: with one, Torch-Pruning 1.6.1 stops with an IndexError at its PyTorch twin.

References:
  Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, arXiv:2010.11929.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn


class ViT(nn.Module):
    """Attributes: width of the residual stream, heads, layers, classes, side of a patch in pixels."""

    width: int = 384
    heads: int = 6
    depth: int = 12
    classes: int = 1000
    patch: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, patch)(x)
        n, rows, columns, width = x.shape
        x = x.reshape(n, rows * columns, width)
        for _ in range(self.depth):
            x = x + self.attention(nn.LayerNorm()(x))
            h = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)), approximate=False)
            x = x + nn.Dense(self.width)(h)
        return nn.Dense(self.classes)(nn.LayerNorm()(x).mean(1))

    def attention(self, x: jax.Array) -> jax.Array:
        n, length, width = x.shape
        split = jnp.split(nn.Dense(3 * width)(x), 3, -1)
        q, k, v = (part.reshape(n, length, self.heads, width // self.heads) for part in split)
        mixed = jax.nn.dot_product_attention(q, k, v)
        return nn.Dense(width)(mixed.reshape(n, length, width))
