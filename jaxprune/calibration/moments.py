"""Moments of activations: sums over rows, accumulated batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration.rows import Rows, weights_of_rows

Kind = Literal["diagonal", "full"]


class Moments(NamedTuple):
    """Sums over the rows x of activations X, each row times its weight (1 where there are none).

    total: number of rows, (); sums: sum of x, (groups, inputs); second: X^T X, (groups, inputs, inputs), or its
    diagonal, (groups, inputs). All float32.
    """

    total: jax.Array
    sums: jax.Array
    second: jax.Array

    @property
    def is_full(self) -> bool:
        return self.second.ndim == 3

    @property
    def squares(self) -> jax.Array:
        """Sum of x^2 for each input, (groups, inputs)."""
        return jnp.diagonal(self.second, axis1=1, axis2=2) if self.is_full else self.second

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]  (sums, not concatenation)
        return Moments(*(a + b for a, b in zip(self, other, strict=True)))


def moments_of(
    activations: Sequence[jax.Array], rows: Rows, kind: Kind, weights: Sequence[jax.Array | None]
) -> tuple[Moments, bool]:
    """Moments over all batches, and whether the weights fit the rows."""
    first = jax.eval_shape(rows, activations[0])
    groups, _, inputs = first.shape
    second = (groups, inputs, inputs) if kind == "full" else (groups, inputs)
    moments = Moments(
        jnp.zeros((), jnp.float32), jnp.zeros((groups, inputs), jnp.float32), jnp.zeros(second, jnp.float32)
    )
    fits = True
    for x, w in zip(activations, weights, strict=False):
        of_rows = None if w is None else weights_of_rows(w, rows, x.shape)
        fits = fits and of_rows is not None
        moments = _accumulate(rows, moments, x, of_rows)
    return moments, fits


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _accumulate(rows: Rows, moments: Moments, x: jax.Array, weights: jax.Array | None) -> Moments:
    x = rows(x).astype(jnp.float32)
    weighted = x if weights is None else x * weights.astype(jnp.float32)[None, :, None]
    total = x.shape[1] if weights is None else jnp.sum(weights, dtype=jnp.float32)
    if weights is not None:
        x = jnp.where(weights[None, :, None] != 0, x, 0)  # what padding holds may be anything, NaN too
        weighted = jnp.where(weights[None, :, None] != 0, weighted, 0)
    if moments.is_full:
        second = jnp.einsum("gni,gnj->gij", weighted, x, precision=lax.Precision.HIGHEST)
    else:
        second = jnp.sum(weighted * x, axis=1)
    return Moments(moments.total + total, moments.sums + jnp.sum(weighted, axis=1), moments.second + second)


def cross_moment(
    left: Sequence[jax.Array], right: Sequence[jax.Array], rows: Rows, weights: Sequence[Any]
) -> jax.Array:
    """`left^T right` over all batches, (groups, inputs, inputs)."""
    total: Any = 0.0
    for x, y, w in zip(left, right, weights, strict=False):
        total = _cross(rows, total, x, y, None if w is None else weights_of_rows(w, rows, x.shape))
    return total


@functools.partial(jax.jit, static_argnums=0)
def _cross(rows: Rows, total: Any, x: jax.Array, y: jax.Array, weights: jax.Array | None) -> jax.Array:
    x, y = rows(x).astype(jnp.float32), rows(y).astype(jnp.float32)
    if weights is not None:
        counts = weights[None, :, None] != 0
        x = jnp.where(counts, x * weights.astype(jnp.float32)[None, :, None], 0)
        y = jnp.where(counts, y, 0)
    return total + jnp.einsum("gni,gnj->gij", x, y, precision=lax.Precision.HIGHEST)
