"""Recipes that prune a trained network at once and continue to train it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxprune.allocation import Scope
from jaxprune.params import prunable_leaves
from jaxprune.recipes._recipe import Allocation, Recipe, Task, allocated, check_part, compared_over
from jaxprune.schedules import one_shot as one_shot_schedule
from jaxprune.scores import lamp as lamp_score
from jaxprune.scores import magnitude
from jaxprune.structures import Structure, Unstructured
from jaxprune.transforms import gradual


def one_shot(
    sparsity: float,
    *,
    at: float = 0.5,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    allocation: Allocation = None,
) -> Recipe:
    """Train, prune the smallest weights at once, fine-tune the remaining ones.

    Args:
      sparsity: final sparsity, in [0, 1).
      at: fraction of the training before the pruning, in [0, 1).
      scope, structure: as for `make_masks`.
      allocation: a sparsity for each layer instead of `scope`: a tree whose total is `sparsity`, a function
        (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.one_shot(0.9)
      one-shot, sparsity 0.9
        structure       Unstructured()
        scoring         magnitude, global
        scheduling      at once, after 0.5 of the training
        initialization  the trained weights (fine-tuning)

    References:
      Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015, arXiv:1506.02626.
    """
    scoring = f"magnitude, {compared_over(scope, allocation)}"
    return _at_once("one-shot", sparsity, at, magnitude, scope, structure, scoring, allocation=allocation)


def lamp(sparsity: float, *, at: float = 0.5) -> Recipe:
    """Layer-adaptive magnitude: one threshold over all layers, on scores that keep every layer from being emptied.

    Args:
      sparsity, at: as for `one_shot`.

    Example:
      >>> import jaxprune as jp
      >>> print(jp.recipes.lamp(0.9).scoring)
      LAMP, global

    References:
      Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, 2020, arXiv:2010.07611.
    """
    return _at_once("LAMP", sparsity, at, lamp_score, "global", Unstructured(), "LAMP, global")


def minimum_keep(sparsity: float, *, at: float = 0.5, share: float = 0.5) -> Recipe:
    """`one_shot`, but every layer keeps some of its largest weights, whatever the threshold over all layers.

    Args:
      sparsity, at: as for `one_shot`.
      share: the minimum that a layer keeps: a fraction in [0, 1] of the mean number of kept weights per layer.

    Example:
      >>> import jaxprune as jp
      >>> print(jp.recipes.minimum_keep(0.9).scoring)
      magnitude, global; every layer keeps at least 0.5 of the mean over layers
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1], got {share}.")

    def minimum(task: Task) -> int:
        sizes = [jax.tree.leaves(task.params)[i].size for i in prunable_leaves(task.params, task.where)]
        return int(share * (1 - sparsity) * sum(sizes) / len(sizes))

    scoring = f"magnitude, global; every layer keeps at least {share:g} of the mean over layers"
    return _at_once("minimum keep", sparsity, at, magnitude, "global", Unstructured(), scoring, minimum)


def _at_once(
    name: str,
    sparsity: float,
    at: float,
    score: Callable[..., Any],
    scope: Scope,
    structure: Structure,
    scoring: str,
    minimum: Callable[[Task], int] = lambda task: 0,
    allocation: Allocation = None,
) -> Recipe:
    check_part(at=at)

    def make(inner: optax.GradientTransformation, task: Task) -> optax.GradientTransformationExtraArgs:
        final = allocated(allocation, sparsity, task.params, task.where)
        schedule = one_shot_schedule(final, step=int(at * task.steps))
        return gradual(
            inner,
            schedule,
            score=score,
            scope=scope,
            structure=structure,
            where=task.where,
            minimum=minimum(task),
        )

    return Recipe(
        name,
        sparsity,
        scoring=scoring,
        scheduling=f"at once, after {at:g} of the training",
        initialization="the trained weights (fine-tuning)",
        make=make,
        structure=structure,
    )
