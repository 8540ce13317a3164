"""Least squares of a map D with M D = E, from sums over rows."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Sums(NamedTuple):
    """Sums over rows: of (M, 1) by itself and by E, and of the squares of E and of the target.

    In the diagonal case the first two have a last axis of channels and small first axes.
    """

    gram: np.ndarray
    cross: np.ndarray
    missing: np.ndarray
    target: np.ndarray

    def plus(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


@functools.partial(jax.jit, static_argnames=("axis", "sign", "diagonal", "normalize"))
def sums(
    value: jax.Array,
    here: jax.Array,
    target: jax.Array,
    *,
    axis: int,
    sign: int,
    diagonal: bool,
    normalize: bool,
) -> tuple[jax.Array, ...]:
    """The sums of one batch, in float32.

    Args:
      value: M, whose tail takes the map.
      here: the stream without the branches, of which M is a summand.
      target: the stream with them.
      axis: the axis that the map acts on; all others are rows.
      sign: of M in the sum.
      diagonal: whether the map is.
      normalize: whether each row is divided by the norm of its target.
    """
    m, here, target = (
        jnp.moveaxis(x.astype(jnp.float32), axis, -1).reshape(-1, x.shape[axis])
        for x in (value, here, target)
    )
    norm = jnp.linalg.norm(target, axis=-1, keepdims=True)
    weight = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0) if normalize else jnp.ones_like(norm)
    m, missing, target = sign * m * weight, (target - here) * weight, target * weight
    if diagonal:
        ones = jnp.broadcast_to(weight, m.shape)
        left = jnp.stack([m, ones])
        gram = jnp.einsum("and,bnd->abd", left, left, precision=lax.Precision.HIGHEST)
        cross = jnp.einsum("and,nd->ad", left, missing, precision=lax.Precision.HIGHEST)
    else:
        left = jnp.concatenate([m, weight], 1)
        gram = jnp.matmul(left.T, left, precision=lax.Precision.HIGHEST)
        cross = jnp.matmul(left.T, missing, precision=lax.Precision.HIGHEST)
    return gram, cross, jnp.square(missing).sum(), jnp.square(target).sum()


class Fit(NamedTuple):
    """linear: I + D; constant; before, after: the error relative to the target without the map and with it."""

    linear: np.ndarray
    constant: np.ndarray
    before: float
    after: float


def fitted(of: Sums, damping: float, with_constant: bool, diagonal: bool) -> Fit:
    """The map of the least error, in float64.

    Args:
      of: the sums over all rows.
      damping: penalty on each entry of D, relative to the sum of squares of its input.
      with_constant: whether a constant is fitted too.
      diagonal: whether the map is.
    """
    if diagonal:
        gram, cross = np.moveaxis(of.gram, -1, 0), np.moveaxis(of.cross, -1, 0)[..., None]
    else:
        gram, cross = of.gram[None], of.cross[None]
    if not with_constant:
        gram, cross = gram[:, :-1, :-1], cross[:, :-1]
    inner = gram.shape[1] - with_constant
    penalty = np.zeros_like(gram)
    at = np.arange(inner)
    penalty[:, at, at] = damping * gram[:, at, at]
    found = np.stack([_solved(g, c) for g, c in zip(gram + penalty, cross, strict=True)])
    left = of.missing - 2 * (found * cross).sum() + (found * (gram @ found)).sum()
    change = np.diag(found[:, 0, 0]) if diagonal else found[0, :inner]
    size = len(change)
    constant = found[:, inner].reshape(-1) if with_constant else np.zeros(size)
    whole = max(float(of.target), np.finfo(np.float64).tiny)
    before, after = (float(np.sqrt(max(float(x), 0.0) / whole)) for x in (of.missing, left))
    return Fit(np.eye(size) + change, constant, before, after)


def _solved(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """The least solution, also where inputs are zero or equal."""
    scale = np.sqrt(np.diag(gram))
    scale = np.where(scale > 0, scale, 1.0)
    unit = gram / scale[:, None] / scale
    found = np.linalg.lstsq(unit, cross / scale[:, None], rcond=1e-9)[0]
    return found / scale[:, None]
