"""ADMM: the layer's least squares problem under a sparsity constraint, solved with one factorization."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve

from jaxprune.calibration.methods.keep import keep_costly
from jaxprune.statistics.moments import Kind
from jaxprune.structures.matrix import MatrixStructure


@dataclasses.dataclass(frozen=True)
class ADMM:
    r"""Alternates between the least squares solution and its projection onto sparse weights.

    On inputs scaled to unit norm, with $G$ the scaled and damped $X^T X$ and $W_0$ the scaled weights:
    $Z = (W + U) \odot mask$, $U \leftarrow U + W - Z$, $W = (G + \rho I)^{-1} (G W_0 + \rho (Z - U))$. In the first
    `ramp` rounds the mask keeps the largest $|W + U|$, at a sparsity that grows as a cubic. Then the mask is fixed.

    Args:
      rounds: number of rounds.
      ramp: number of rounds in which the mask changes.
      rho: weight of the distance to the sparse weights.
      damping: number that is added to the diagonal of $X^T X$, relative to each of its entries (they are 1 after
        scaling).

    Raises:
      ValueError: if `rounds` or `ramp` is below 1, if `ramp` is above `rounds`, if `rho` is not positive, or if
        `damping` is negative.

    References:
      Boža, Fast and Effective Weight Update for Pruned Large Language Models, 2024, arXiv:2401.02938.
    """

    rounds: int = 20
    ramp: int = 15
    rho: float = 1.0
    damping: float = 0.1
    moments: ClassVar[Kind] = "full"

    def __post_init__(self):
        if not 1 <= self.ramp <= self.rounds:
            raise ValueError(
                f"ADMM needs 1 <= `ramp` <= `rounds`, got ramp={self.ramp!r}, rounds={self.rounds!r}."
            )
        if not (self.rho > 0 and self.damping >= 0):
            raise ValueError(
                f"ADMM needs `rho` > 0 and `damping` >= 0, got rho={self.rho!r}, damping={self.damping!r}."
            )

    def check(self, structure: MatrixStructure) -> None:
        del structure

    def factorize(self, gram: jax.Array) -> jax.Array:
        """(G + rho I)^-1."""
        scaled = _scaled(gram, _norms(gram), self.damping)
        identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
        return cho_solve(cho_factor(scaled + self.rho * identity), identity)

    def solve(
        self, w: jax.Array, gram: jax.Array, factor: jax.Array, n_pruned: Any, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """Pruned weights (inputs, outputs) and their mask."""
        return _solve(w, gram, factor, n_pruned, self, structure)


def _norms(gram: jax.Array) -> jax.Array:
    """Norm of each input; 1 for inputs that are always 0."""
    diagonal = jnp.diagonal(gram)
    return jnp.where(diagonal > 0, jnp.sqrt(jnp.maximum(diagonal, 1e-38)), 1.0)


def _scaled(gram: jax.Array, norms: jax.Array, damping: float) -> jax.Array:
    return gram / norms[:, None] / norms[None, :] + damping * jnp.eye(gram.shape[0], dtype=gram.dtype)


@functools.partial(jax.jit, static_argnames=("method", "structure"))
def _solve(
    w: jax.Array, gram: jax.Array, inverse: jax.Array, n_pruned: Any, method: ADMM, structure: MatrixStructure
) -> tuple[jax.Array, jax.Array]:
    dead = jnp.diagonal(gram) <= 0
    norms = _norms(gram)
    dense = w
    w0 = jnp.where(dead[:, None], 0.0, w * norms[:, None])
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    target = multiply(_scaled(gram, norms, method.damping), w0)

    def mask_at(i, weights):
        share = 1 - (1 - jnp.minimum(i + 1, method.ramp).astype(jnp.float32) / method.ramp) ** 3
        count = jnp.round(share * jnp.asarray(n_pruned, jnp.float32)).astype(jnp.int32)
        count = jnp.minimum(count, n_pruned)
        count = jnp.where(i + 1 >= method.ramp, n_pruned, count)
        return keep_costly(jnp.abs(weights), dense, dead, count, structure)

    def one_round(i, carry):
        w, u, mask, _ = carry
        changes = i < method.ramp
        mask = lax.cond(changes, lambda: mask_at(i, w + u), lambda: mask)
        z = jnp.where(mask, w + u, 0.0)
        u = u + w - z
        w = multiply(inverse, target + method.rho * (z - u))
        return w, u, mask, z

    carry = (w0, jnp.zeros_like(w0), jnp.ones(w0.shape, bool), w0)
    w, u, mask, _ = lax.fori_loop(0, method.rounds, one_round, carry)
    found = jnp.where(dead[:, None], dense, (w + u) / norms[:, None])
    return jnp.where(mask, found, 0.0), mask
