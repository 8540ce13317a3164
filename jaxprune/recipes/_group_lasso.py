"""Channels made small by a penalty, then pruned."""

from __future__ import annotations

import jax
import optax

from jaxprune import scores
from jaxprune.params import PyTree
from jaxprune.recipes._recipe import Allocation, Recipe, Task, allocated, check_part, compared_over
from jaxprune.schedules import one_shot
from jaxprune.sparse_training import group_penalty
from jaxprune.structures import Channels
from jaxprune.transforms import gradual


def group_lasso(
    sparsity: float, *, strength: float = 1e-4, at: float = 0.5, allocation: Allocation = None
) -> Recipe:
    """Structured sparsity learning: a group lasso makes output channels small, then the smallest are pruned at once.

    The pruned channels are those of the smallest L2 norm in each layer; training goes on with the others. Give
    `where` without the output layer: its channels are what the network is asked for. Network slimming, which
    penalises and ranks the scales of norm layers, is `jp.sparse_training.slimming` with
    `jp.scores.batch_norm_scale`.

    Args:
      sparsity: share of the channels of each layer that is pruned, in [0, 1).
      strength: of the penalty `sum_g sqrt(n_g) ||w_g||`, whose gradient is added to the loss's.
      at: share of the training after which channels are pruned, in [0, 1).
      allocation: each layer's own share: "erk", "uniform", a function (params, sparsity, where=) -> tree, or a tree
        of shares that come to `sparsity` in all; None for the same share of each.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.group_lasso(0.5)
      group lasso, sparsity 0.5
        structure       Channels(axis=-1)
        scoring         L2 norm under a group lasso of 0.0001, local
        scheduling      at once, after 0.5 of the training
        initialization  weights go on (fine-tuning)

    References:
      Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016, arXiv:1608.03665.
    """
    check_part(at=at)

    def make(inner: optax.GradientTransformation, task: Task) -> optax.GradientTransformationExtraArgs:
        def penalise(grads: PyTree, params: PyTree | None) -> PyTree:
            pull = jax.grad(group_penalty)(params, Channels(), task.where)
            return jax.tree.map(lambda g, p: g + (strength * p).astype(g.dtype), grads, pull)

        return gradual(
            optax.chain(optax.stateless(penalise), inner),
            one_shot(allocated(allocation, sparsity, task.params, task.where), step=int(at * task.steps)),
            score=lambda params: scores.l2_norm(params, Channels()),
            scope="local",
            structure=Channels(),
            where=task.where,
        )

    return Recipe(
        "group lasso",
        sparsity,
        scoring=f"L2 norm under a group lasso of {strength:g}, {compared_over('local', allocation)}",
        scheduling=f"at once, after {at:g} of the training",
        initialization="weights go on (fine-tuning)",
        make=make,
        structure=Channels(),
    )
