"""Masks of the highest scores of the present weights, whatever was pruned before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxprune.allocation import check_fraction, check_limit
from jaxprune.lookahead import weights_of
from jaxprune.masking import Criterion
from jaxprune.masking.units import as_arrays
from jaxprune.params import PyTree
from jaxprune.scores._scorer import call_score
from jaxprune.structures import Structure


def top_k(params: PyTree, sparsity: Any, criterion: Criterion, score: Callable[..., PyTree]) -> PyTree:
    """Masks in the tree of `params`, arrays throughout as a loop carries them; NaN scores are pruned first."""
    units = criterion.units(params)
    counts = units.counts(units.shares(sparsity))
    return as_arrays(units.masks(call_score(score, weights_of(params), None), counts), params)


def check_sparsity(sparsity: Any, structure: Structure) -> None:
    """Raises for a sparsity that is known to be wrong before there are parameters."""
    final = getattr(sparsity, "final", None) if callable(sparsity) else sparsity
    if isinstance(final, int | float | str):
        check_fraction("sparsity", final)
        check_limit("sparsity", float(final), structure)
