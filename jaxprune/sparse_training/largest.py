"""Masks of the largest weights as they are now, whatever was pruned before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxprune.allocation import Scope, check_fraction, check_scope, counts_to_prune, shares_of
from jaxprune.input_axes import with_input_axes
from jaxprune.lookahead import paired, weights_of
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves
from jaxprune.scores.scorer import call_score
from jaxprune.structures import NM, Structure
from jaxprune.units import as_arrays, masks_from_counts, unit_counts


def largest(
    params: PyTree,
    sparsity: Any,
    scope: Scope,
    structure: Structure,
    where: PyTree | None,
    score: Callable[..., PyTree],
) -> PyTree:
    """Masks in the tree of `params`, arrays throughout as a loop carries them; NaN scores go first."""
    weights = weights_of(params)
    scores = call_score(score, weights, None)
    chosen = prunable_leaves(weights, where)
    paths, leaves, _ = flatten_with_paths(weights)
    structure = with_input_axes(structure, weights)
    for i in chosen:
        structure.check(paths[i], leaves[i].shape)
    shares = shares_of(sparsity, weights, chosen)
    counts = counts_to_prune(shares, unit_counts(structure, leaves, chosen), scope)
    masks = masks_from_counts(scores, counts, structure, chosen, None)
    return paired(as_arrays(masks, weights), params)


def check_sparsity(sparsity: Any, scope: Scope, structure: Structure) -> None:
    """Raises for what is known to be wrong before there are parameters."""
    check_scope(scope, structure)
    final = getattr(sparsity, "final", None) if callable(sparsity) else sparsity
    if isinstance(final, int | float | str):
        check_fraction("sparsity", final)
        if isinstance(structure, NM) and float(final) > structure.sparsity + 1e-6:
            raise ValueError(
                f"`sparsity` must not pass {structure.sparsity:g}, that of {structure}, got {final:g}."
            )


def check_steps(**steps: Any) -> None:
    """Raises ValueError for numbers of steps that are not whole or below 1 (`begin` and `end`: 0)."""
    for name, value in steps.items():
        least = 0 if name in ("begin", "end") else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be a whole number of steps, at least {least}, got {value!r}.")
