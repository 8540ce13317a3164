"""Momenta of moving averages, found by the derivative of the new averages by the old ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.healing.running_statistics import Statistic

_REMEDY = "`train_fn` must run the model in training mode and return its new statistics."


def momenta(
    update: Callable[[list[Any]], list[Any]], olds: list[Any], stats: Sequence[Statistic]
) -> list[float]:
    r"""The m of each average in $new = m \cdot old + (1 - m) \cdot batch$.

    update: old averages -> new ones, on one batch.
    Raises ValueError where an average is no such thing: m would be 1, or depends on other averages.
    """

    @jax.jit
    def derivatives(olds: list[Any]) -> list[list[Any]]:
        # Powers of two, so that dividing by them is exact; other averages have other ones.
        ways = [[1.0] * len(olds), [2.0 ** (i % 7) for i in range(len(olds))]]
        found = []
        for way in ways:
            tangents = [jnp.full_like(old, t) for old, t in zip(olds, way, strict=True)]
            _, slopes = jax.jvp(update, (olds,), (tangents,))
            found.append([slope / t for slope, t in zip(slopes, way, strict=True)])
        return found

    one, other = jax.device_get(derivatives(olds))
    return [
        _momentum(stat.path, a, b, old.dtype) for stat, a, b, old in zip(stats, one, other, olds, strict=True)
    ]


def _momentum(path: str, one: np.ndarray, other: np.ndarray, dtype: Any) -> float:
    if not one.size:
        return 0.0
    alike = np.concatenate([np.ravel(one), np.ravel(other)])
    if not np.allclose(alike, alike[0], rtol=0, atol=1e-5):
        raise ValueError(
            f"the new value of {path!r} is no moving average: it depends on other statistics too. {_REMEDY}"
        )
    momentum = _shortest(alike[0], dtype)
    if not 0 <= momentum < 1:
        raise ValueError(
            f"`train_fn` must move {path!r} toward the statistics of the batch, "
            f"but the old value enters the new one with weight {momentum:g}. {_REMEDY}"
        )
    return momentum


def _shortest(number: Any, dtype: Any) -> float:
    """The shortest decimal number that rounds to a float: what a person has written, so that 1 - 0.999 is exact.

    Example:
      >>> import numpy as np
      >>> from jaxprune.healing.momentum import _shortest
      >>> float(np.float32(0.99)) == 0.99, _shortest(np.float32(0.99), np.float32)
      (False, 0.99)
    """
    for digits in range(1, 17):
        short = round(float(number), digits)
        if np.asarray(short, dtype) == np.asarray(number, dtype):
            return short
    return float(number)
