"""Means and variances of several batches together, from those of each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.healing.momentum import check_finite
from jaxprune.healing.running_statistics import Statistic


class Pool(NamedTuple):
    """The batches so far, by Welford's method.

    count: their number; means: of each statistic over them; squares: the sums of squared differences from it.
    """

    count: Any
    means: list[Any]
    squares: list[Any]

    @classmethod
    def empty(cls, like: list[Any]) -> Pool:
        zeros = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in like]
        return cls(jnp.zeros(()), zeros, zeros)

    def add(self, values: list[Any]) -> Pool:
        """With the statistics of one more batch."""
        count = self.count + 1
        away = [value - mean for value, mean in zip(values, self.means, strict=True)]
        means = [mean + far / count for mean, far in zip(self.means, away, strict=True)]
        squares = [
            square + far * (value - mean)
            for square, far, value, mean in zip(self.squares, away, values, means, strict=True)
        ]
        return Pool(count, means, squares)


def pooled(pool: Pool, stats: Sequence[Statistic]) -> list[jax.Array]:
    """Each mean over the batches, and each variance within batches plus that of its mean between them."""
    number = {stat.place: i for i, stat in enumerate(stats)}
    values = []
    for i, stat in enumerate(stats):
        value = pool.means[i]
        if stat.mean in number:
            value = value + pool.squares[number[stat.mean]] / pool.count
        check_finite(value, stat.path)
        values.append(value)
    return values
