"""A residual CNN with BatchNorm, as large as ResNet-18 or small.

References:
  He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385.
"""

from __future__ import annotations

import jax
from flax import linen as nn


class ResNet(nn.Module):
    """Basic blocks; by default ResNet-18.

    Attributes:
      widths: channels of each stage; each stage but the first halves the image.
      blocks: residual blocks in a stage.
      classes: width of the output.
      stem: size and stride of the first convolution.
      pool: whether a maximum over 3 x 3 follows it, with stride 2.
      train: whether BatchNorm normalises by the batch, and updates its statistics.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    blocks: int = 2
    classes: int = 1000
    stem: tuple[int, int] = (7, 2)
    pool: bool = True
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(x, width, size, stride):
            pad = size // 2
            x = nn.Conv(width, (size, size), stride, padding=pad, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not self.train, momentum=0.9)(x)

        x = nn.relu(conv(x, self.widths[0], *self.stem))
        if self.pool:
            x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                y = conv(nn.relu(conv(x, width, 3, stride)), width, 3, 1)
                if x.shape != y.shape:
                    x = conv(x, width, 1, stride)
                x = nn.relu(x + y)
        return nn.Dense(self.classes)(x.mean((1, 2)))
