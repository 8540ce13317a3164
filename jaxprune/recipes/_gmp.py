"""Gradual magnitude pruning."""

from __future__ import annotations

import optax

from jaxprune.allocation import Scope
from jaxprune.recipes._recipe import (
    Allocation,
    Recipe,
    Task,
    allocated,
    check_part,
    compared_over,
)
from jaxprune.schedules import cubic
from jaxprune.structures import Structure, Unstructured
from jaxprune.transforms import gradual
from jaxprune.whole_numbers import check_whole


def gmp(
    sparsity: float,
    *,
    until: float = 0.75,
    updates: int = 50,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    allocation: Allocation = None,
) -> Recipe:
    """Gradual magnitude pruning: prunes more and more of the smallest weights during training.

    Args:
      sparsity: final sparsity, in [0, 1).
      until: fraction of the training after which nothing more is pruned.
      updates: number of updates of the masks until then.
      scope, structure: as for `make_masks`.
      allocation: a sparsity for each layer instead of `scope`: a tree whose total is `sparsity`, a function
        (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.gmp(0.9)
      GMP, sparsity 0.9
        structure       Unstructured()
        scoring         magnitude, global
        scheduling      cubic in 50 updates over the first 0.75 of the training
        initialization  the trained weights; pruned ones remain pruned

    References:
      Zhu, Gupta, To prune, or not to prune, 2017, arXiv:1710.01878.
    """

    check_part(until=until)
    check_whole(updates=updates)

    def make(inner: optax.GradientTransformation, task: Task) -> optax.GradientTransformationExtraArgs:
        end = int(until * task.steps)
        final = allocated(allocation, sparsity, task.params, task.where)
        schedule = cubic(final, begin=0, end=end, every=max(end // updates, 1))
        return gradual(inner, schedule, scope=scope, structure=structure, where=task.where)

    return Recipe(
        "GMP",
        sparsity,
        scoring=f"magnitude, {compared_over(scope, allocation)}",
        scheduling=f"cubic in {updates} updates over the first {until:g} of the training",
        initialization="the trained weights; pruned ones remain pruned",
        make=make,
        structure=structure,
    )
