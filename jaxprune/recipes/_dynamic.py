"""Recipes that train sparse from the start and change the masks during training."""

from __future__ import annotations

from collections.abc import Callable

import optax

from jaxprune import sparse_training
from jaxprune.recipes._recipe import (
    Allocation,
    Recipe,
    Task,
    allocated,
    check_part,
    compared_over,
)
from jaxprune.whole_numbers import check_whole


def rigl(
    sparsity: float,
    *,
    until: float = 0.75,
    updates: int = 20,
    fraction: float = 0.3,
    allocation: Allocation = "erk",
) -> Recipe:
    """RigL: drops the smallest weights and grows those with the largest gradients.

    Args:
      sparsity: fraction of the weights that is pruned throughout the training, in [0, 1).
      until: fraction of the training after which the masks no longer move.
      updates: number of moves until then.
      fraction: fraction of the kept weights that is dropped and regrown at first.
      allocation: a sparsity for each layer: "erk", "uniform", a function (params, sparsity, where=) -> tree, or a
        tree whose total is `sparsity`; None for the same sparsity in each.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.rigl(0.95)
      RigL, sparsity 0.95
        structure       Unstructured()
        scoring         magnitude to drop, |gradient| to grow, by layer; ERK allocation
        scheduling      sparse from the start; 20 moves of up to 0.3 over the first 0.75 of the training
        initialization  random masks on the initial weights; grown weights start at 0

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019, arXiv:1911.11134.
    """
    return _moving(
        "RigL", sparsity, until, updates, fraction, allocation, "|gradient| to grow", sparse_training.rigl
    )


def set(
    sparsity: float,
    *,
    until: float = 0.75,
    updates: int = 20,
    fraction: float = 0.3,
    allocation: Allocation = "erk",
) -> Recipe:
    """SET: drops the smallest weights and grows others at random.

    Args:
      sparsity, until, updates, fraction, allocation: as for `rigl`.

    Example:
      >>> import jaxprune as jp
      >>> print(jp.recipes.set(0.95).scoring)
      magnitude to drop, random to grow, by layer; ERK allocation

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired
      by network science, 2017, arXiv:1707.04780.
    """
    return _moving(
        "SET", sparsity, until, updates, fraction, allocation, "random to grow", sparse_training.set
    )


def _moving(
    name: str,
    sparsity: float,
    until: float,
    updates: int,
    fraction: float,
    allocation: Allocation,
    growth: str,
    wrap: Callable[..., optax.GradientTransformationExtraArgs],
) -> Recipe:
    check_part(until=until)
    check_whole(updates=updates)

    def make(inner: optax.GradientTransformation, task: Task) -> optax.GradientTransformationExtraArgs:
        end = int(until * task.steps)
        return wrap(
            inner,
            allocated(allocation, sparsity, task.params, task.where),
            end=end,
            every=max(end // updates, 1),
            fraction=fraction,
            where=task.where,
            key=task.key,
        )

    return Recipe(
        name,
        sparsity,
        scoring=f"magnitude to drop, {growth}, by layer; {compared_over('uniform', allocation)}",
        scheduling=(
            f"sparse from the start; {updates} moves of up to {fraction:g} over the first {until:g} "
            "of the training"
        ),
        initialization="random masks on the initial weights; grown weights start at 0",
        make=make,
        needs=("key",),
    )
