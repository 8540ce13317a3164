"""From scores and counts to masks, as one compiled program."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.selection import Count
from jaxprune.structures.structure import Cut


def keep_masks(
    cut: Cut,
    scores: Sequence[Any],
    counts: Any,
    priors: Sequence[Any] | None = None,
    least: Sequence[int] = (),
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Masks of the chosen leaves that prune given counts of units, and for each leaf whether its scores are fine.

    It is one program for all leaves. Counts that are known are arguments of it, so that another sparsity is not
    compiled anew.

    Args:
      cut: the units.
      scores: those of each chosen leaf. They are fine where none is NaN or -inf.
      counts: units to prune: one number over all units, or a list with one for each array of units.
      priors: for each leaf what was pruned before; None where nothing was.
      least: units that each array of units keeps at least.
    """
    sizes = map(math.prod, cut.shapes)
    unprotected = [_argument(n - m) for n, m in zip(sizes, least, strict=True)] if any(least) else None
    counts = cut.counts_to_compare(counts)
    counts = [_argument(count) for count in counts] if isinstance(counts, list) else _argument(counts)
    held = [None] * len(scores) if priors is None else list(priors)
    return _keep_masks(cut, list(scores), counts, held, unprotected)


def _argument(count: Any) -> Any:
    return Count.of(count) if isinstance(count, int) else count


@functools.partial(jax.jit, static_argnames="cut")
def _keep_masks(
    cut: Cut, scores: list[Any], counts: Any, priors: list[Any], unprotected: list[Any] | None
) -> tuple[list[jax.Array], list[jax.Array]]:
    leaves = [jnp.asarray(score) for score in scores]
    units = [comparable(u) for u in cut.scores(leaves)]
    kept = cut.select(units, counts, cut.pruned(priors), unprotected)
    # A unit that was pruned in part stays pruned in that part.
    masks = [
        mask if prior is None else mask & prior for mask, prior in zip(cut.masks(kept), priors, strict=True)
    ]
    return masks, [_is_fine(leaf) for leaf in leaves]


def comparable(scores: jax.Array) -> jax.Array:
    """Scores in a type that `select` takes: float64 is compared as float32."""
    return scores.astype(jnp.float32) if scores.dtype == jnp.float64 else scores


def _is_fine(scores: jax.Array) -> jax.Array:
    """Whether no score is NaN or -inf. inf means keep."""
    # Some 8-bit floats have no inf.
    wide = scores.astype(jnp.float32) if scores.dtype.itemsize < 4 else scores
    return jnp.all(wide > -jnp.inf)  # false for NaN


@functools.partial(jax.jit, static_argnames="cut")
def pruned_units(cut: Cut, masks: list[Any]) -> list[jax.Array]:
    """For each array of units which of them have no weight left."""
    found = cut.pruned(masks)
    return [
        jnp.zeros(shape, bool) if pruned is None else pruned
        for pruned, shape in zip(found, cut.shapes, strict=True)
    ]


@functools.partial(jax.jit, static_argnames="cut")
def spread(cut: Cut, kept: list[jax.Array]) -> list[jax.Array]:
    """Mask leaves from one decision a unit."""
    return cut.masks(kept)


@functools.partial(jax.jit, static_argnames="cut")
def nothing_pruned(cut: Cut) -> list[jax.Array]:
    """Mask leaves that keep every unit."""
    return cut.masks([jnp.ones(shape, bool) for shape in cut.shapes])
