"""Least squares on the kept weights of a layer: a separate problem per output, all solved at once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    r"""Refits the kept weights: $\min \|X W - X W_0\|_F$ over $W$ with the zeros of the mask.

    The solver is conjugate gradients on all outputs at once, scaled by the diagonal. A step is one product with
    $X^T X$, and no step increases the error.

    Args:
      steps: number of steps.
      damping: penalty on changes of a weight; it is added to the diagonal of $X^T X$, relative to each of its
        entries.

    Raises:
      ValueError: if `steps` is below 1 or `damping` is negative.
    """

    steps: int = 20
    damping: float = 0.0

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 1 or not self.damping >= 0:
            raise ValueError(
                f"LeastSquares needs `steps` >= 1 and `damping` >= 0, got steps={self.steps!r}, "
                f"damping={self.damping!r}."
            )

    def refine(
        self, w0: jax.Array, gram: jax.Array, w: jax.Array, mask: jax.Array, structure: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """Refitted weights (inputs, outputs) and the same mask."""
        del structure
        return refit(w0, gram, w, mask, self.steps, self.damping), mask


@functools.partial(jax.jit, static_argnames="steps")
def refit(
    w0: jax.Array, gram: jax.Array, w: jax.Array, mask: jax.Array, steps: int, damping: Any = 0.0
) -> jax.Array:
    """Conjugate gradients for the kept weights, from `w`."""
    diagonal = jnp.diagonal(gram)
    added = (damping * diagonal)[:, None]
    preconditioner = jnp.where(diagonal > 0, 1 / jnp.maximum(diagonal * (1 + damping), 1e-38), 0.0)[:, None]
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def applied(v):
        return multiply(gram, v) + added * v

    w = jnp.where(mask, w, 0.0)
    residual = jnp.where(mask, applied(w0 - w), 0.0)
    direction = preconditioner * residual
    energy = jnp.sum(residual * direction, axis=0)

    def step(_, carry):
        w, residual, direction, energy = carry
        image = applied(direction)
        curvature = jnp.sum(direction * image, axis=0)
        length = jnp.where(curvature > 0, energy / jnp.where(curvature > 0, curvature, 1.0), 0.0)
        w = w + length[None] * direction
        residual = jnp.where(mask, residual - length[None] * image, 0.0)
        scaled = preconditioner * residual
        new = jnp.sum(residual * scaled, axis=0)
        growth = jnp.where(energy > 0, new / jnp.where(energy > 0, energy, 1.0), 0.0)
        return w, residual, scaled + growth[None] * direction, new

    new, *_ = lax.fori_loop(0, steps, step, (w, residual, direction, energy))
    better = errors(w0, gram, new) <= errors(w0, gram, w)  # rounding, on a singular X^T X
    return jnp.where(better[None], new, w)


def errors(w0: jax.Array, gram: jax.Array, w: jax.Array) -> jax.Array:
    """||X w - X w0||^2 of each output."""
    e = w - w0
    return jnp.sum(e * jnp.matmul(gram, e, precision=lax.Precision.HIGHEST), axis=0)
