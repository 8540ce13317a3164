"""Batches on the device, one behind the other, so that a compiled loop can pick one at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.calibration.engine.model import inputs_of
from jaxprune.healing.arrays import split


class Stacked(NamedTuple):
    """arrays: with a leading axis of batches; pick: (arrays, which) -> the inputs of a batch; number: of batches."""

    arrays: list[Any]
    pick: Callable[[list[Any], Any], tuple[Any, ...]]
    number: int


def stacked(batches: Iterable[Any], most: int | None = None) -> Stacked:
    """The checked batches, at most the first so many of them."""
    inputs = inputs_of(batches)[:most]
    _, join = split(inputs[0])
    columns = zip(*(split(batch)[0] for batch in inputs), strict=True)
    arrays = [jnp.stack([jnp.asarray(x) for x in column]) for column in columns]

    def pick(arrays: list[Any], number: Any) -> tuple[Any, ...]:
        return join([array[number] for array in arrays])

    return Stacked(arrays, pick, len(inputs))


def order(count: int, steps: int, key: jax.Array | None) -> jax.Array:
    """The batch of each step: all by turns, or with a key each once in every epoch, in a drawn order.

    Example:
      >>> from jaxprune.healing.batches import order
      >>> order(3, 7, None).tolist()
      [0, 1, 2, 0, 1, 2, 0]
    """
    if key is None:
        return jnp.arange(steps, dtype=jnp.int32) % count
    epochs = -(-steps // count)
    keys = jax.random.split(key, epochs)
    numbers = jax.vmap(lambda key: jax.random.permutation(key, count))(keys)
    return numbers.reshape(-1)[:steps].astype(jnp.int32)
