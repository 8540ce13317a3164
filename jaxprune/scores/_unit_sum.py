"""Sums over the weights of each unit, and unit values spread over their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, flatten_with_paths, is_float_array
from jaxprune.structures import LeafStructure


def float_paths(params: PyTree) -> list[str]:
    """Paths of the float leaves, in order."""
    paths, leaves, _ = flatten_with_paths(params)
    return [path for path, leaf in zip(paths, leaves, strict=True) if is_float_array(leaf)]


def unit_sum(path: str, values: jax.Array, structure: LeafStructure) -> jax.Array:
    """Sum of the values over each unit: an array of the units' shape.

    A leaf that the structure cannot cut is returned as it is: `make_masks`, which knows `where`, decides
    whether it may be pruned at all.
    """
    if not _cuts(path, values.shape, structure):
        return values
    return structure.unit_scores(values) * structure.unit_sizes(values.shape)


def spread(path: str, units: jax.Array, shape: tuple[int, ...], structure: LeafStructure) -> jax.Array:
    """The value of each unit at every one of its weights."""
    return jnp.broadcast_to(structure.expand(units, shape), shape) if _cuts(path, shape, structure) else units


def over_units(
    params: PyTree,
    values: Sequence[jax.Array],
    structure: LeafStructure,
    score: Callable[[jax.Array], jax.Array] = lambda total: total,
) -> list[jax.Array]:
    """`score(sum over the unit)` at every weight of the unit, for the values of all float leaves."""
    return [
        spread(path, score(unit_sum(path, x, structure)), x.shape, structure)
        for path, x in zip(float_paths(params), values, strict=True)
    ]


def _cuts(path: str, shape: tuple[int, ...], structure: LeafStructure) -> bool:
    if not shape or 0 in shape:
        return False
    try:
        structure.check(path, shape)
    except ValueError:
        return False
    return structure.unit_shape(shape) != tuple(shape)
