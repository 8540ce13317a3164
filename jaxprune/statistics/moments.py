"""Moments of activations: sums over rows, accumulated batch by batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.host import settled, to_device
from jaxprune.jaxprs.rows import Rows, weights_of_rows

Kind = Literal["diagonal", "full"]

# Squares of numbers in this range, and sums of them over all rows, lie well inside float32.
_SAFE = 2.0**-48, 2.0**48

_SMALLEST_HALF = 128  # inputs: products of fewer are slower than what they save


class Moments(NamedTuple):
    """Sums over the rows x of activations X, each row times its row weight (1 if there are none).

    total: number of rows, (); sums: sum of x / scale, (groups, inputs); second: X^T X of x / scale,
    (groups, inputs, inputs), or its diagonal, (groups, inputs); scale: divisor of each input, (groups, inputs): 1,
    or a power of two if the squares of the input leave the range of float32. All are float32.
    """

    total: jax.Array
    sums: jax.Array
    second: jax.Array
    scale: jax.Array

    @property
    def is_full(self) -> bool:
        return self.second.ndim == 3

    @property
    def squares(self) -> jax.Array:
        """Sum of (x / scale)^2 for each input, (groups, inputs)."""
        return _diagonal(self.second) if self.is_full else self.second

    @property
    def norms(self) -> jax.Array:
        """Norm of each input, (groups, inputs)."""
        return _norms(self.squares, self.scale)

    @property
    def unseen(self) -> np.ndarray:
        """Which inputs are 0 in every row, (groups, inputs): the data say nothing about their weights."""
        return np.asarray(self.squares) == 0

    @property
    def largest_scale(self) -> np.float32:
        """The number by which the inputs of `xtx` are divided, ()."""
        largest = np.max(np.asarray(self.scale), where=~self.unseen, initial=0)
        return np.float32(largest if largest > 0 else 1)

    def xtx(self, scale: Any = None) -> jax.Array:
        """X^T X, or its diagonal, of x / scale; None for `largest_scale`.

        Inputs that are so much smaller than the largest that float32 cannot hold their squares are 0 in it.
        """
        ratio = np.asarray(self.scale) / (self.largest_scale if scale is None else np.asarray(scale))
        if (ratio == 1).all() and not self.unseen.any():
            return self.second
        return _in_one_scale(self.second, ratio)

    def in_scale(self, scale: Any) -> Moments:
        """The same moments with other scales."""
        return _in_scale(self, scale)

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]  (sums, not concatenation)
        if not np.array_equal(self.scale, other.scale):
            # The scale of an input that one of the two has not seen says nothing.
            mine = np.where(self.unseen, other.scale, self.scale)
            scale = np.where(other.unseen, mine, np.maximum(mine, other.scale))
            self, other = self.in_scale(scale), other.in_scale(scale)
        sums = (self.total + other.total, self.sums + other.sums, self.second + other.second)
        return Moments(*sums, self.scale)


def moments_of(
    activations: Sequence[jax.Array], rows: Rows, kind: Kind, weights: Sequence[jax.Array | None]
) -> tuple[Moments, bool]:
    """Moments over all batches, and whether the weights fit the rows."""
    groups, _, inputs = jax.eval_shape(rows, activations[0]).shape
    pairs = list(zip(activations, weights, strict=False))
    each = [(x, None if w is None else weights_of_rows(w, rows, x.shape)) for x, w in pairs]
    fits = all(w is None or of_rows is not None for (_, w), (_, of_rows) in zip(pairs, each, strict=True))

    def start(x: np.ndarray) -> jax.Array:
        """An array where the activations are, so that the first batch needs no program of its own."""
        first = activations[0]
        one_device = isinstance(first, jax.Array) and len(first.devices()) == 1
        return to_device(x, first) if one_device else jax.device_put(x)

    def over_batches(scale: np.ndarray) -> tuple[Moments, jax.Array]:
        second = (groups, inputs, inputs) if kind == "full" else (groups, inputs)
        shapes = [(), scale.shape, second, scale.shape]
        total, sums, second, largest = (start(np.zeros(shape, np.float32)) for shape in shapes)
        moments = Moments(total, sums, second, start(scale))
        for x, of_rows in each:
            moments, largest = _accumulate(rows, moments, largest, x, of_rows)
            settled(largest)
        return moments, largest

    moments, largest = over_batches(np.ones((groups, inputs), np.float32))
    scale = safe_scale(np.asarray(largest))
    if (scale != 1).any():
        moments, _ = over_batches(scale)
    return moments, fits


def safe_scale(largest: np.ndarray) -> np.ndarray:
    """1, or the power of two by which to divide numbers of this size if their squares leave the range of float32.

    It is also 1 for 0 and for numbers that are not finite.
    """
    low, high = _SAFE
    unsafe = np.isfinite(largest) & (largest > 0) & ((largest < low) | (largest > high))
    exponent = np.maximum(np.frexp(np.where(unsafe, largest, 1))[1] - 1, -126)
    return np.ldexp(np.float32(1), np.where(unsafe, exponent, 0)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _accumulate(
    rows: Rows, moments: Moments, largest: jax.Array, x: jax.Array, weights: jax.Array | None
) -> tuple[Moments, jax.Array]:
    """The moments with one more batch, and the largest magnitude of each input so far."""
    x = rows(x).astype(jnp.float32)
    total = jnp.asarray(x.shape[1], jnp.float32)
    each = None if weights is None else weights.astype(jnp.float32)[None, :, None]
    if each is not None:
        total = jnp.sum(each)
        x = jnp.where(each != 0, x, 0)  # padding may hold anything, NaN too
    largest = jnp.maximum(largest, jnp.max(jnp.abs(x), axis=1, initial=0))
    x = x / moments.scale[:, None, :]
    weighted = x if each is None else x * each
    second = _gram(weighted, x) if moments.is_full else jnp.sum(weighted * x, axis=1)
    sums = moments.sums + jnp.sum(weighted, axis=1)
    return Moments(moments.total + total, sums, moments.second + second, moments.scale), largest


def _gram(weighted: jax.Array, x: jax.Array, halvings: int = 3) -> jax.Array:
    """X^T X, (groups, inputs, inputs), of rows, (groups, rows, inputs), and the same rows times their weights.

    The product of one half of the inputs with the other is computed once, and so on within the halves.
    """
    middle = x.shape[2] // 2
    if halvings == 0 or middle < _SMALLEST_HALF:
        product = jnp.einsum("gni,gnj->gij", weighted, x, precision=lax.Precision.HIGHEST)
        return (product + jnp.swapaxes(product, 1, 2)) / 2  # the same in both triangles, to the bit
    first, last = (weighted[:, :, :middle], x[:, :, :middle]), (weighted[:, :, middle:], x[:, :, middle:])
    between = jnp.einsum("gni,gnj->gij", first[0], last[1], precision=lax.Precision.HIGHEST)
    above = jnp.concatenate([_gram(*first, halvings - 1), between], axis=2)
    below = jnp.concatenate([jnp.swapaxes(between, 1, 2), _gram(*last, halvings - 1)], axis=2)
    return jnp.concatenate([above, below], axis=1)


def cross_moment(
    left: Sequence[jax.Array],
    right: Sequence[jax.Array],
    rows: Rows,
    weights: Sequence[Any],
    scale: Any = 1.0,
) -> jax.Array:
    """`left^T right` of both divided by `scale`, over all batches, (groups, inputs, inputs)."""
    total: Any = jnp.zeros((), jnp.float32)
    for x, y, w in zip(left, right, weights, strict=False):
        of_rows = None if w is None else weights_of_rows(w, rows, x.shape)
        total = _cross(rows, total, x, y, of_rows, jnp.asarray(scale, jnp.float32))
    return total


@functools.partial(jax.jit, static_argnums=0)
def _cross(
    rows: Rows, total: Any, x: jax.Array, y: jax.Array, weights: jax.Array | None, scale: jax.Array
) -> jax.Array:
    x, y = (rows(v).astype(jnp.float32) / scale for v in (x, y))
    if weights is not None:
        counts = weights[None, :, None] != 0
        x = jnp.where(counts, x * weights.astype(jnp.float32)[None, :, None], 0)
        y = jnp.where(counts, y, 0)
    return total + jnp.einsum("gni,gnj->gij", x, y, precision=lax.Precision.HIGHEST)


@jax.jit
def _diagonal(second: jax.Array) -> jax.Array:
    return jnp.diagonal(second, axis1=1, axis2=2)


@jax.jit
def _norms(squares: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.sqrt(squares) * scale


@jax.jit
def _in_scale(moments: Moments, scale: jax.Array) -> Moments:
    ratio = moments.scale / scale
    return Moments(moments.total, moments.sums * ratio, _in_one_scale(moments.second, ratio), scale)


@jax.jit
def _in_one_scale(second: jax.Array, ratio: jax.Array) -> jax.Array:
    """X^T X, or its diagonal, of the inputs, each times its ratio."""
    if second.ndim == 2:
        return second * ratio * ratio
    second = second * ratio[:, :, None] * ratio[:, None, :]
    gone = jnp.diagonal(second, axis1=1, axis2=2) == 0
    return jnp.where(gone[:, :, None] | gone[:, None, :], 0.0, second)
