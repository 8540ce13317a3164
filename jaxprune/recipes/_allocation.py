"""The sparsity of each layer in a recipe: a tree, a function that makes one, or its name."""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxprune.allocate import erk, uniform
from jaxprune.allocation import check_fraction
from jaxprune.params import PyTree, aligned, flatten_with_paths, prunable_leaves

# What `allocation=` takes: a tree of sparsities, a function (params, sparsity, where=) -> tree, the name of one.
Allocation = Any
ALLOCATIONS = {"erk": erk, "uniform": uniform}


def allocated(allocation: Allocation, sparsity: Any, params: PyTree, where: PyTree | None) -> Any:
    """The sparsity of all leaves, or the tree of an allocation, whose total must be that sparsity."""
    if allocation is None:
        return sparsity
    made = ALLOCATIONS[allocation] if isinstance(allocation, str) else allocation
    shares = made(params, sparsity, where=where) if callable(made) else made
    paths, leaves, _ = flatten_with_paths(params)
    found, chosen = aligned(params, shares, "allocation"), prunable_leaves(params, where)
    for i in chosen:
        check_fraction("allocation", found[i], paths[i])
    if any(isinstance(x, jax.core.Tracer) for x in (sparsity, *(found[i] for i in chosen))):
        return shares
    sizes = [math.prod(leaves[i].shape) for i in chosen]
    pruned = sum(float(found[i]) * n for i, n in zip(chosen, sizes, strict=True))
    # Half a weight per leaf is rounding; half a percent is the rounding of a sparsity written with two digits.
    if abs(pruned - sparsity * sum(sizes)) > len(sizes) / 2 + 0.005 * sum(sizes):
        raise ValueError(
            f"`allocation` must have the recipe's sparsity of {sparsity:g} in total, but it prunes "
            f"{pruned / max(sum(sizes), 1):.3g} of the weights."
        )
    return shares


def check_allocation(allocation: Allocation) -> None:
    """Raises for an unknown name, or a single number."""
    if isinstance(allocation, str) and allocation not in ALLOCATIONS:
        names = ", ".join(map(repr, ALLOCATIONS))
        raise ValueError(
            f"`allocation` must be one of {names}, a function or a tree of sparsities, got {allocation!r}."
        )
    if isinstance(allocation, bool | int | float):
        raise TypeError(
            f"`allocation` must be a name, a function or a tree of sparsities, got {allocation!r}."
        )


def allocation_text(allocation: Allocation) -> str:
    """An allocation as a recipe prints it."""
    if isinstance(allocation, str):
        return repr(allocation)
    if not callable(allocation):
        return "given"
    return getattr(allocation, "__name__", type(allocation).__name__)
