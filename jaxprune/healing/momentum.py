"""Momenta of moving averages, found by setting the old averages to values so large that the batch does not count."""

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

    (A derivative does not tell: NNX stops gradients there.)

    Args:
      update: old averages -> new ones, on one batch.
      olds: zeros of the types of the old averages.
      stats: what they are.

    Raises:
      ValueError: where a value is no such average: m would be 1, or it depends on other averages.
    """
    found = [jax.device_get(update(olds))]
    for spread in (1, 7):  # first alike for all averages, then different ones
        large = [
            2.0 ** (np.log2(float(jnp.finfo(old.dtype).max)) * 3 // 4 - i % spread)
            for i, old in enumerate(olds)
        ]
        news = update([jnp.full_like(old, a) for old, a in zip(olds, large, strict=True)])
        found.append([np.asarray(new, np.float64) / a for new, a in zip(news, large, strict=True)])
    return [
        _momentum(stat.path, start, one, other, old.dtype)
        for stat, old, start, one, other in zip(stats, olds, *found, strict=True)
    ]


def _momentum(path: str, start: np.ndarray, one: np.ndarray, other: np.ndarray, dtype: Any) -> float:
    if not one.size:
        return 0.0
    check_finite(start, path)
    alike = np.concatenate([np.ravel(one), np.ravel(other)])
    if not np.isfinite(alike).all() or not np.allclose(alike, alike[0], rtol=0, atol=1e-5):
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


def check_finite(values: Any, path: str) -> None:
    """Raises ValueError if statistics are NaN or infinite."""
    if not np.isfinite(np.asarray(values)).all():
        raise ValueError(f"`batches` must give finite statistics, got NaN or infinity at {path!r}.")


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
    return max(float(number), 0.0) if abs(number) < 1e-9 else float(number)
