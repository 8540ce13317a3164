"""Alternating compressed and decompressed training."""

from __future__ import annotations

import optax

from jaxprune import sparse_training
from jaxprune.allocation import Scope
from jaxprune.recipes._recipe import (
    Allocation,
    Recipe,
    Task,
    allocated,
    check_part,
    compared_over,
)
from jaxprune.whole_numbers import check_whole


def ac_dc(
    sparsity: float,
    *,
    begin: float = 0.1,
    until: float = 0.7,
    phases: int = 6,
    scope: Scope = "global",
    allocation: Allocation = None,
) -> Recipe:
    """AC/DC: sparse and dense phases of training alternate; the last phase is sparse.

    Args:
      sparsity: fraction of the weights that is pruned in the sparse phases, in [0, 1).
      begin: fraction of the training before the first sparse phase.
      until: fraction of the training after which all of it is sparse.
      phases: number of sparse and dense phases between the two.
      scope: "global" or "local".
      allocation: a sparsity for each layer instead of `scope`: a tree whose total is `sparsity`, a function
        (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.ac_dc(0.9)
      AC/DC, sparsity 0.9
        structure       Unstructured()
        scoring         magnitude, global
        scheduling      6 alternating sparse and dense phases from 0.1 to 0.7 of the training, then sparse
        initialization  the trained weights; regrown ones start at 0

    References:
      Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks, 2021,
      arXiv:2106.12379.
    """

    check_part(begin=begin, until=until)
    if until < begin:
        raise ValueError(f"`until` must not be before `begin`, got begin={begin}, until={until}.")
    check_whole(phases=phases)

    def make(inner: optax.GradientTransformation, task: Task) -> optax.GradientTransformationExtraArgs:
        first = int(begin * task.steps)
        every = max(int((until - begin) * task.steps) // phases, 1)
        return sparse_training.ac_dc(
            inner,
            allocated(allocation, sparsity, task.params, task.where),
            begin=first,
            end=min(first + phases * every, task.steps - 1),  # sparse at the end, however short the training
            every=every,
            scope=scope,
            where=task.where,
        )

    return Recipe(
        "AC/DC",
        sparsity,
        scoring=f"magnitude, {compared_over(scope, allocation)}",
        scheduling=(
            f"{phases} alternating sparse and dense phases from {begin:g} to {until:g} of the training, then sparse"
        ),
        initialization="the trained weights; regrown ones start at 0",
        make=make,
    )
