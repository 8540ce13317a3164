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
    """Makes masks that prune exactly `round(sparsity * n)` of n units, those with the lowest scores.

    Units of equal score are pruned in the order of the leaves, then of their flat index. Units that `prior` has
    pruned come before all others and count. The masks form a tree like `scores`. A mask is a bool array that
    broadcasts to its parameter (True = keep), or the plain `True` for a leaf that `where` leaves out.

    Args:
      scores: pytree of float arrays shaped like the parameters, larger = keep. A score of inf means keep: such
        a unit is pruned only when all others have been. A unit that holds an inf has the score inf. Leaves
        of several dtypes, and float64, are compared as float32.
      sparsity: fraction of all units to prune, in [0, 1): a float, a scalar array (may be traced), or a tree
        of floats like `scores` (an allocation: each leaf has its own sparsity, whatever the scope).
      scope: "global" ranks the units of all leaves together, "local" prunes the same fraction of each leaf.
      structure: how weights form units: `Unstructured()`, `NM(n, m)`, `Block(shape)`, `Channels()`, `Layers()`,
        or `Coupled(groups)` for units that span several leaves.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function that returns one; None for
        `prunable(scores)`.
      prior: masks whose pruned units remain pruned.
      minimum: the minimum number of units that every leaf to prune keeps (a leaf with fewer keeps all), or a
        float in (0, 1) for that fraction of each leaf, rounded up. The highest scores of each leaf are kept
        and the other units are ranked as before, so the number of pruned units remains the same.

    Returns:
      Tree like `scores` of masks.

    Raises:
      ValueError: if the sparsity is outside [0, 1), or leaves fewer units than `minimum` (a traced sparsity
        stops at the minimum instead); if trees don't match; if scores are NaN or -inf (under `jit` those are
        pruned first, NaN before -inf); if the structure can't cut a leaf; if there is nothing to prune.
      TypeError: if a leaf to prune is not a floating-point array.

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
    """Raises ValueError for NaN or -inf among scores, if their values are known. inf means keep."""
    if any(isinstance(flag, Tracer) for flag in fine):
        return
    for i, is_fine in zip(units.chosen, jax.device_get(fine), strict=True):
        if not is_fine:
            path, scores = units.leaves[i].path, units.leaves[i].value
            raise ValueError(
                f"`scores` must be numbers, or inf for units to keep, got {int(jnp.isnan(scores).sum())} NaN "
                f"and {int((scores == -jnp.inf).sum())} -inf of {scores.size} at {path!r}."
            )
