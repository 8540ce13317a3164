"""Masks inside one weight matrix of shape (inputs, outputs)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.selection import nm_keep, select
from jaxprune.structures import NM, Block, Structure, Unstructured


def keep_highest(scores: jax.Array, n_pruned: Any, structure: Structure) -> jax.Array:
    """Keep-mask of a matrix (inputs, outputs): all but the `n_pruned` units of the lowest scores.

    N:M groups run along the inputs, and their pattern alone says how many go.
    """
    if isinstance(structure, NM):
        return nm_keep(scores, structure.n, structure.m, axis=0)
    (kept,) = select([structure.unit_scores(scores)], n_pruned)
    return jnp.broadcast_to(structure.expand(kept, scores.shape), scores.shape)


def check_structure(structure: Structure, path: str, shape: tuple[int, int], innermost: int) -> None:
    """Raises for a structure that a matrix (inputs, outputs) can't be cut by.

    `innermost` is the length of the inputs' last axis: N:M groups must not run across its ends.
    """
    if not isinstance(structure, NM | Block | Unstructured):
        raise TypeError(f"`structure` must be Unstructured(), NM(n, m) or Block((a, b)), got {structure!r}.")
    if isinstance(structure, Block) and len(structure.shape) != 2:
        raise ValueError(f"`structure` must be a block of (inputs, outputs), got Block({structure.shape}).")
    if isinstance(structure, NM) and innermost % structure.m:
        raise ValueError(
            f"NM({structure.n}, {structure.m}): `m` must divide the input axis, got {path!r} with {innermost} "
            f"(a matrix of {shape[0]} inputs). Leave it out of `where`."
        )


def n_units(structure: Structure, shape: tuple[int, int]) -> int:
    """Units of a matrix."""
    return math.prod(structure.unit_shape(shape))
