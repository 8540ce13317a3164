"""From scores and counts to masks, unit by unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.input_axes import with_input_axes
from jaxprune.lookahead import paired, weights_of
from jaxprune.meshes import is_explicit
from jaxprune.params import PyTree, flatten_with_paths, is_kept_whole, mask_leaves
from jaxprune.selection import nm_keep, select
from jaxprune.structures import NM, Structure


def unit_counts(structure: Structure, leaves: list[Any], chosen: list[int]) -> list[int]:
    """Units of each chosen leaf."""
    return [math.prod(structure.unit_shape(leaves[i].shape)) for i in chosen]


def masks_from_counts(
    scores: PyTree,
    counts: Any,
    structure: Structure,
    chosen: list[int],
    prior: PyTree | None,
    least: Sequence[int] = (),
) -> PyTree:
    """Masks that prune given counts of units; a list has one count for each chosen leaf.

    `least` has the units that each chosen leaf keeps at least, whatever the counts (an N:M pattern sees to
    that itself).
    """
    paths, leaves, treedef = flatten_with_paths(scores)
    structure = with_input_axes(structure, scores)
    priors = [True] * len(leaves) if prior is None else mask_leaves(scores, prior, "prior")
    units, pruned = [], []
    for i in chosen:
        scores_of_units = structure.unit_scores(jnp.asarray(leaves[i]))
        is_double = scores_of_units.dtype == jnp.float64  # is compared as float32
        units.append(scores_of_units.astype(jnp.float32) if is_double else scores_of_units)
        pruned.append(pruned_units(structure, priors[i], leaves[i].shape))
    is_held = any(least) and not isinstance(structure, NM)
    protected: list[Any] = [None] * len(chosen)
    if is_held:
        protected = [_highest(u, m, p) for u, m, p in zip(units, least, pruned, strict=True)]
        units = [_above_all(u, keep) for u, keep in zip(units, protected, strict=True)]
    if isinstance(structure, NM):
        kept = _select_nm(structure, [paths[i] for i in chosen], units, counts, pruned)
    else:
        kept = select(units, counts, pruned=pruned)
    if is_held:
        kept = [k if keep is None else k | keep for k, keep in zip(kept, protected, strict=True)]
    masks: list[Any] = [True if is_kept_whole(prior) else prior for prior in priors]
    for i, keep_units in zip(chosen, kept, strict=True):
        mask = structure.expand(keep_units, leaves[i].shape)
        # A unit that was pruned in part stays pruned in that part.
        masks[i] = mask if masks[i] is True else mask & priors[i]
    return _tied(jax.tree.unflatten(treedef, masks))


def next_masks(
    scores: PyTree,
    counts: Any,
    structure: Structure,
    chosen: list[int],
    masks: PyTree,
    least: Sequence[int] = (),
) -> PyTree:
    """The masks that follow `masks`, what they pruned included: arrays in their tree, as a loop carries them."""
    return as_arrays(masks_from_counts(scores, counts, structure, chosen, masks, least), masks)


def as_arrays(masks: PyTree, like: PyTree) -> PyTree:
    """Masks as a loop carries them: arrays throughout, in the tree of `like`."""
    return jax.tree.unflatten(
        jax.tree.structure(like), [jnp.asarray(mask) for mask in jax.tree.leaves(masks)]
    )


def full_masks(params: PyTree, structure: Structure, chosen: list[int]) -> PyTree:
    """All-keep masks in the shapes that `masks_from_counts` gives; each leaf an array of its own."""
    paths, leaves, treedef = flatten_with_paths(params)
    structure = with_input_axes(structure, params)
    masks: list[Any] = [jnp.array(True) for _ in leaves]
    for i in chosen:
        structure.check(paths[i], leaves[i].shape)
        if structure.unit_shape(leaves[i].shape) == leaves[i].shape:
            masks[i] = jnp.full_like(leaves[i], True, dtype=bool)  # like the parameter: sharding too
        else:
            units = jnp.ones(structure.unit_shape(leaves[i].shape), bool)
            masks[i] = placed_like(structure.expand(units, leaves[i].shape), leaves[i])
    return _tied(jax.tree.unflatten(treedef, masks))


def _tied(masks: PyTree) -> PyTree:
    """Of lookahead's pair, the masks of the fast weights for both halves."""
    return paired(weights_of(masks), masks)


def placed_like(mask: jax.Array, w: jax.Array) -> jax.Array:
    """The mask on the devices of its parameter, cut as the parameter is.

    An explicit mesh has it so in the types: a `where` of differently sharded operands is an error there. On
    an automatic mesh only known arrays are moved, under `jit` the compiler places them.
    """
    if mask.ndim == 0:
        return mask
    sharding: Any = jax.typeof(w).sharding
    known = None if isinstance(w, jax.core.Tracer) else getattr(w, "sharding", None)  # NumPy has none
    if isinstance(known, NamedSharding):
        sharding = known
    elif not is_explicit(w):
        return mask
    spec = tuple(sharding.spec) + (None,) * (w.ndim - len(sharding.spec))
    spec = [axis if n == m else None for axis, n, m in zip(spec, w.shape, mask.shape, strict=True)]
    sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.sharding.reshard(mask, sharding) if is_explicit(w) else jax.device_put(mask, sharding)


def pruned_units(structure: Structure, prior: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """Units of which no weight is left."""
    if is_kept_whole(prior):
        return None
    alive = jnp.broadcast_to(prior, shape)
    if structure.unit_shape(shape) == tuple(shape):
        return ~alive
    return structure.unit_scores(alive.astype(jnp.float32)) <= 0


def _highest(units: jax.Array, number: int, pruned: jax.Array | None) -> jax.Array | None:
    """The highest units of a leaf that are not pruned yet."""
    return select([units], units.size - number, pruned=[pruned])[0] if number else None


def _above_all(units: jax.Array, keep: jax.Array | None) -> jax.Array:
    """Scores in which the units to keep rank above all others."""
    if keep is None:
        return units
    return jnp.where(keep, jnp.inf, below_infinity(units))


def below_infinity(scores: jax.Array) -> jax.Array:
    """Scores with the largest number in place of inf. (A minimum would flush denormals.)"""
    return jnp.where(scores == jnp.inf, jnp.finfo(scores.dtype).max, scores)


def _select_nm(
    structure: NM, paths: list[str], units: list[Any], counts: Any, pruned: list[Any]
) -> list[Any]:
    patterns = [
        nm_keep(u, structure.n, structure.m, structure.group_axis(path, u.shape), pruned=p)
        for path, u, p in zip(paths, units, pruned, strict=True)
    ]
    limits = [u.size * (structure.m - structure.n) // structure.m for u in units]
    if isinstance(counts, list):
        known = all(isinstance(count, int) for count in counts)
        if known and counts == limits:
            return patterns
    elif isinstance(counts, int) and counts == sum(limits):
        return patterns
    # Below the pattern's own sparsity: the lowest of the weights that the pattern would prune. A weight that
    # the pattern keeps ranks above all of them.
    ranked = [
        jnp.where(pattern, jnp.inf, jnp.where(jnp.isnan(u), -jnp.inf, below_infinity(u)))
        for u, pattern in zip(units, patterns, strict=True)
    ]
    kept = select(ranked, counts, pruned=pruned)
    return [k | pattern for k, pattern in zip(kept, patterns, strict=True)]
