"""A norm of each unit, spread over its weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.float_range import exponent_of, scaled, unscaled, widened
from jaxprune.params import PyTree, flatten_with_paths, is_float_array
from jaxprune.structures import LeafStructure


def unit_norm(
    params: PyTree, structure: LeafStructure, of_units: Callable[[jax.Array, LeafStructure], jax.Array]
) -> PyTree:
    """The norm of each unit, at every weight of the unit."""
    paths, leaves, treedef = flatten_with_paths(params)

    def norm(path: str, w: jax.Array) -> jax.Array:
        # A leaf that this structure cannot cut is scored weight by weight: `make_masks`, which knows `where`,
        # decides whether it may be pruned at all.
        try:
            structure.check(path, w.shape)
        except ValueError:
            return jnp.abs(widened(w))
        if structure.unit_shape(w.shape) == tuple(w.shape):
            return jnp.abs(widened(w))
        return jnp.broadcast_to(structure.expand(of_units(w, structure), w.shape), w.shape)

    scores = [
        norm(path, jnp.asarray(w)) if is_float_array(w) and w.ndim else w
        for path, w in zip(paths, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, scores)


def l1_of_units(w: jax.Array, structure: LeafStructure) -> jax.Array:
    """Sum of the absolute values of each unit."""
    return structure.unit_scores(jnp.abs(widened(w))) * structure.unit_sizes(w.shape)


def l2_of_units(w: jax.Array, structure: LeafStructure) -> jax.Array:
    """Root of the sum of squares of each unit. The squares are of numbers near 1: w over a power of two."""
    w = widened(w)
    exponent = exponent_of(structure.unit_scores(jnp.abs(jax.lax.stop_gradient(w))))
    near_one = scaled(w, jnp.broadcast_to(structure.expand(exponent, w.shape), w.shape))
    total = structure.unit_scores(jnp.square(near_one)) * structure.unit_sizes(w.shape)
    # The gradient of the norm is 0 where the norm is.
    is_zero = total == 0  # NaN remains NaN
    return unscaled(jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, total))), exponent)
