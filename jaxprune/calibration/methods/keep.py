"""Masks inside one weight matrix of shape (inputs, outputs)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.structures.matrix import MatrixStructure

_SMALLEST = 1.2e-38  # about the smallest normal float32


def keep_costly(
    costs: jax.Array, w: jax.Array, unseen: jax.Array, n_pruned: Any, structure: MatrixStructure
) -> jax.Array:
    """Mask of a matrix (inputs, outputs) that keeps all but the `n_pruned` units of the lowest costs.

    N:M groups run along the inputs, and the pattern alone determines how many weights are pruned. Units that have
    only unseen inputs are pruned before all others, in ascending order of their weights' size.

    Args:
      costs: costs of at least 0, (inputs, outputs); their values at unseen inputs do not matter.
      w: the weights, of the same shape.
      unseen: which inputs are always 0, (inputs,), or which weights belong to such an input.
      n_pruned: number of units to prune.
      structure: the structure that defines the units.
    """
    units = unit_costs(costs, w, unseen, structure)
    return keep_units(units, n_pruned, structure, costs.shape)


def unit_costs(costs: jax.Array, w: jax.Array, unseen: jax.Array, structure: MatrixStructure) -> jax.Array:
    """Costs of units: at least 0, or below 0 and in the order of their sizes if all their inputs are unseen."""
    unseen = jnp.broadcast_to(unseen[:, None] if unseen.ndim == 1 else unseen, costs.shape)
    units = structure.unit_scores(jnp.where(unseen, 0.0, costs))
    sizes = structure.unit_scores(jnp.abs(w))
    nothing_known = structure.unit_scores(unseen.astype(jnp.float32)) == 1
    return jnp.where(nothing_known, -1 / jnp.maximum(sizes, _SMALLEST), units)


def keep_units(
    units: jax.Array, n_pruned: Any, structure: MatrixStructure, shape: tuple[int, ...]
) -> jax.Array:
    """Mask of a matrix of this shape from the scores of its units, True = keep."""
    cut = structure.cut_matrix(shape)
    counts = n_pruned if structure.matrix_units().kept is None else None
    (kept,) = cut.select([units], counts, [None])
    return jnp.broadcast_to(cut.masks([kept])[0], shape)


def n_units(structure: MatrixStructure, shape: tuple[int, int]) -> int:
    """Number of units of a matrix."""
    return math.prod(structure.unit_shape(shape))
