"""Recipes that prune before the first step and train the remaining weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from jaxprune import scores
from jaxprune.allocation import Scope
from jaxprune.at_init import prune_at_init
from jaxprune.masking import make_masks
from jaxprune.recipes._recipe import Allocation, Recipe, Task, allocated, compared_over
from jaxprune.transforms import masked
from jaxprune.whole_numbers import check_whole


def magnitude_at_init(sparsity: float, *, scope: Scope = "global", allocation: Allocation = None) -> Recipe:
    """Prunes the smallest initial weights: a control, which loses whole layers if their initial scales differ.

    Args:
      sparsity: fraction of the weights to prune, in [0, 1).
      scope: "global" or "local".
      allocation: a sparsity for each layer instead of `scope`: a tree whose total is `sparsity`, a function
        (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.magnitude_at_init(0.9)
      magnitude at initialization, sparsity 0.9
        structure       Unstructured()
        scoring         magnitude, global
        scheduling      at once, before training
        initialization  the initial weights

    References:
      Frankle et al., Pruning Neural Networks at Initialization: Why are We Missing the Mark?, 2020,
      arXiv:2009.08576.
    """
    return _before_training(
        "magnitude at initialization",
        sparsity,
        lambda task: scores.magnitude,
        "magnitude",
        scope=scope,
        allocation=allocation,
    )


def static(sparsity: float, *, allocation: Allocation = "erk") -> Recipe:
    """Random masks that never change: the control experiment for every sparse training.

    Args:
      sparsity: fraction of the weights to prune, in [0, 1).
      allocation: a sparsity for each layer: "erk", "uniform", a function (params, sparsity, where=) -> tree, or a
        tree whose total is `sparsity`; None for the same sparsity in each.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.static(0.9)
      static random, sparsity 0.9
        structure       Unstructured()
        scoring         random, ERK allocation
        scheduling      at once, before training
        initialization  the initial weights

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019, arXiv:1911.11134.
    """

    def make(inner: optax.GradientTransformation, task: Task) -> optax.GradientTransformationExtraArgs:
        drawn = scores.random(task.params, task.key)
        shares = allocated(allocation, sparsity, task.params, task.where)
        return masked(inner, make_masks(drawn, shares, scope="local", where=task.where))

    return Recipe(
        "static random",
        sparsity,
        scoring=f"random, {compared_over('local', allocation)}",
        scheduling="at once, before training",
        initialization="the initial weights",
        make=make,
        needs=("key",),
    )


def snip(sparsity: float, *, rounds: int = 1, allocation: Allocation = None) -> Recipe:
    """SNIP: prunes the weights whose removal changes the loss least, to first order.

    Args:
      sparsity: fraction of the weights to prune, in [0, 1).
      rounds: number of prunings, each with new scores; the paper uses 1.
      allocation: a sparsity for each layer instead of one threshold over all: a tree whose total is `sparsity`, a
        function (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Example:
      >>> import jaxprune as jp
      >>> print(jp.recipes.snip(0.9).scoring)
      SNIP |w g| on given batches, global

    References:
      Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2018,
      arXiv:1810.02340.
    """
    return _before_training(
        "SNIP",
        sparsity,
        lambda task: lambda params: scores.snip(task.loss_fn, params, *task.batches),
        "SNIP |w g| on given batches",
        rounds=rounds,
        allocation=allocation,
        needs=("loss_fn", "batches"),
    )


def grasp(sparsity: float, *, rounds: int = 1, allocation: Allocation = None) -> Recipe:
    """GraSP: prunes the weights whose removal reduces the gradient flow least.

    Args:
      sparsity, rounds, allocation: as for `snip`.

    Example:
      >>> import jaxprune as jp
      >>> print(jp.recipes.grasp(0.9).scoring)
      GraSP w (H g) on given batches, global

    References:
      Wang, Zhang, Grosse, Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020,
      arXiv:2002.07376.
    """
    return _before_training(
        "GraSP",
        sparsity,
        lambda task: lambda params: scores.grasp(task.loss_fn, params, *task.batches),
        "GraSP w (H g) on given batches",
        rounds=rounds,
        allocation=allocation,
        needs=("loss_fn", "batches"),
    )


def synflow(sparsity: float, *, rounds: int = 100, allocation: Allocation = None) -> Recipe:
    """SynFlow: prunes the weights with the least flow through them; it needs no data.

    Args:
      sparsity: fraction of the weights to prune, in [0, 1).
      rounds: number of prunings, each with new scores; many rounds keep whole layers from being pruned.
      allocation: as for `snip`.

    Example:
      >>> import jaxprune as jp
      >>> print(jp.recipes.synflow(0.9).scheduling)
      100 rounds at a constant rate, before training

    References:
      Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020,
      arXiv:2006.05467.
    """
    return _before_training(
        "SynFlow",
        sparsity,
        lambda task: lambda params: scores.synflow(task.fn, params, *task.inputs),
        "SynFlow |w dR/dw|, no data",
        rounds=rounds,
        allocation=allocation,
        needs=("fn", "inputs"),
    )


def _before_training(
    name: str,
    sparsity: float,
    score: Callable[[Task], Callable[[Any], Any]],
    scoring: str,
    *,
    rounds: int = 1,
    scope: Scope = "global",
    allocation: Allocation = None,
    needs: tuple[str, ...] = (),
) -> Recipe:
    check_whole(rounds=rounds)
    when = "at once" if rounds == 1 else f"{rounds} rounds at a constant rate"

    def make(inner: optax.GradientTransformation, task: Task) -> optax.GradientTransformationExtraArgs:
        shares = allocated(allocation, sparsity, task.params, task.where)
        masks = prune_at_init(score(task), task.params, shares, rounds=rounds, scope=scope, where=task.where)
        return masked(inner, masks)

    return Recipe(
        name,
        sparsity,
        scoring=f"{scoring}, {compared_over(scope, allocation)}",
        scheduling=f"{when}, before training",
        initialization="the initial weights",
        make=make,
        needs=needs,
    )
