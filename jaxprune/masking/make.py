"""Masks from scores and a sparsity."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.allocation import Scope
from jaxprune.masking.criterion import Criterion
from jaxprune.masking.units import Units
from jaxprune.params import PyTree
from jaxprune.structures import Structure, Unstructured


def make_masks(
    scores: PyTree,
    sparsity: Any,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    prior: PyTree | None = None,
    minimum: int | float = 0,
) -> PyTree:
    """Keep-masks that prune exactly `round(sparsity * n)` of n units, those of the lowest scores.

    Units of equal score go in the order of the leaves, then of their flat index. What `prior` has pruned
    goes first and counts. The masks have the structure of `scores`; a leaf is a bool array that broadcasts
    to its parameter (True = keep), or the plain `True` where `where` is False.

    Args:
      scores: pytree of float arrays shaped like the parameters, larger = keep, inf = keep as long as anything
        else is left; a unit that holds an inf has the score inf. Leaves of several dtypes, and
        float64, are compared as float32.
      sparsity: share of the units to prune in all, in [0, 1): a float, a scalar array (also traced), or a
        tree of floats like `scores` (an allocation: each leaf its own share, whatever the scope).
      scope: "global" compares the units of all leaves, "local" takes the same share of each leaf.
      structure: what a unit is: `Unstructured()`, `NM(n, m)`, `Block(shape)`, `Channels()`, `Layers()`, or
        `Coupled(groups)` for units that lie across leaves.
      where: tree of bools (or a prefix of one, or a function that gives it), the leaves to prune; None for
        `prunable(scores)`.
      prior: masks whose pruned units stay pruned.
      minimum: units that every leaf to prune keeps at least (a leaf with fewer keeps all): a whole number, or a
        float in (0, 1) for that share of each leaf, rounded up. The highest scores of each leaf stay, the
        others are compared as before, so the number pruned in all is the same.

    Returns:
      Tree like `scores` of masks.

    Raises:
      ValueError: a sparsity outside [0, 1), or one that `minimum` contradicts (where it is a known number; a
        traced one stops at the minimum); trees that don't match; NaN or -inf among the scores (eagerly; under
        `jit` they are pruned first, NaN before -inf); a leaf that the structure can't cut; nothing to prune.
      TypeError: a leaf to prune that is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"kernel": jnp.array([[0.5, -2.0], [0.1, 1.0]]), "bias": jnp.zeros(2)}
      >>> jp.make_masks(jp.scores.magnitude(params), 0.5)
      {'bias': True, 'kernel': Array([[False,  True],
             [False,  True]], dtype=bool)}

    References:
      Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015, arXiv:1506.02626.
    """
    units = Criterion(structure, scope, where, minimum).units(scores)
    shares = units.shares(sparsity)
    units.check_final(shares)
    masks, fine = units.masks_and_flags(scores, units.counts(shares), prior)
    _check_scores(units, fine)
    return masks


def _check_scores(units: Units, fine: list[jax.Array]) -> None:
    """Raises ValueError for NaN or -inf among scores, where their values are known. inf means keep."""
    if any(isinstance(flag, Tracer) for flag in fine):
        return
    for i, is_fine in zip(units.chosen, jax.device_get(fine), strict=True):
        if not is_fine:
            path, scores = units.leaves[i].path, units.leaves[i].value
            raise ValueError(
                f"`scores` must be numbers, or inf for what is to be kept, got {int(jnp.isnan(scores).sum())} NaN "
                f"and {int((scores == -jnp.inf).sum())} -inf of {scores.size} at {path!r}."
            )
