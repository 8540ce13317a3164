"""What every structure offers, and the score of a unit."""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

Shape = tuple[int, ...]


class Structure(Protocol):
    """A rule that cuts a parameter into units.

    A structure is a frozen dataclass: static, hashable, and it holds no arrays. The units of a leaf form an
    array of `unit_shape(shape)`; `unit_scores` reduces a score leaf to it and `expand` turns one decision a
    unit into a mask leaf that broadcasts to the parameter. Every unit has the same weight in a count.
    """

    def check(self, path: str, shape: Shape) -> None:
        """Raises ValueError, naming `path`, when a leaf of this shape cannot be cut into units."""
        ...

    def unit_shape(self, shape: Shape) -> Shape:
        """Shape of the array of units of a leaf."""
        ...

    def unit_sizes(self, shape: Shape) -> jax.typing.ArrayLike:
        """Weights in each unit; broadcasts to `unit_shape(shape)`."""
        ...

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        """Mean score of each unit's weights, float32 (`Unstructured` keeps the scores as they are)."""
        ...

    def expand(self, units: jax.Array, shape: Shape) -> jax.Array:
        """Value of each unit spread over its weights: an array that broadcasts to `shape`."""
        ...


def mean_over(scores: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Mean over axes, which are kept with size 1; exact where the scores are constant.

    Scores that are one value a unit (as `scores.l2_norm` gives them) must come through unchanged, or rounding
    in the sum would reorder close units. So the mean is taken of the differences to the unit's lowest entry.
    """
    if any(scores.shape[axis] == 0 for axis in axes):
        return jnp.zeros([1 if i in axes else n for i, n in enumerate(scores.shape)], jnp.float32)
    scores = scores.astype(jnp.float32)
    low = jnp.min(scores, axis=axes, keepdims=True)
    return low + jnp.mean(scores - low, axis=axes, keepdims=True)
