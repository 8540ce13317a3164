"""Random numbers for many leaves, by few compiled draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

# Up to this size leaves are drawn in rows of one length: the numbers too many cost less than a compiled draw each.
_SMALL = 2**14


def uniforms(keys: jax.Array, shapes: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """`jax.random.uniform(key, shape)` for each key and shape.

    Each different draw takes about a second to compile on a CPU. Small leaves are drawn together, and so are
    leaves of one shape; with JAX's default keys the numbers are those of separate draws.

    Example:
      >>> import jax
      >>> from jaxprune.draws import uniforms
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> one, other = uniforms(keys, [(2, 3), (4,)])
      >>> bool((one == jax.random.uniform(keys[0], (2, 3))).all()), other.shape
      (True, (4,))
    """
    groups: dict[int | tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(_SMALL if math.prod(shape) <= _SMALL else tuple(shape), []).append(i)
    found: dict[int, jax.Array] = {}
    for group, numbers in groups.items():
        sizes = [math.prod(shapes[i]) for i in numbers]
        drawn_shape = (max(sizes),) if group == _SMALL else group
        rows = jax.vmap(lambda key, shape=drawn_shape: jax.random.uniform(key, shape))(
            keys[np.array(numbers)]
        )
        for i, size, row in zip(numbers, sizes, rows, strict=True):
            found[i] = row[:size].reshape(shapes[i]) if group == _SMALL else row
    return [found[i] for i in range(len(shapes))]
