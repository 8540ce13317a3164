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
    """AC/DC: training is sparse and dense by turns, and sparse at the end.

    Args:
      sparsity: share of the weights that is pruned in the sparse phases, in [0, 1).
      begin: share of the training that is dense first.
      until: share of the training after which it stays sparse.
      phases: sparse and dense ones between the two.
      scope: "global" or "local".
      allocation: each layer's own share instead of `scope`: a tree of shares that come to `sparsity` in all, a
        function (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.ac_dc(0.9)
      AC/DC, sparsity 0.9
        structure       Unstructured()
        scoring         magnitude, global
        scheduling      6 phases, sparse and dense by turns, from 0.1 to 0.7 of the training, then sparse
        initialization  weights go on; those that come back start at 0

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
            f"{phases} phases, sparse and dense by turns, from {begin:g} to {until:g} of the training, then sparse"
        ),
        initialization="weights go on; those that come back start at 0",
        make=make,
    )
