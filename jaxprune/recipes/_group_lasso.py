"""Channels that a penalty makes small and that are then pruned."""

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
    """Structured sparsity learning: a group lasso makes output channels small; the smallest are pruned at once.

    The pruned channels are those of the smallest L2 norm in each layer; the others are trained on. Leave the output
    layer out of `where`: its channels are the outputs of the network. Network slimming, which penalises and ranks
    the scales of norm layers, is `jp.sparse_training.slimming` with `jp.scores.batch_norm_scale`.

    Args:
      sparsity: fraction of the channels of each layer to prune, in [0, 1).
      strength: factor of the penalty `sum_g sqrt(n_g) ||w_g||`, whose gradient is added to that of the loss.
      at: fraction of the training before the pruning, in [0, 1).
      allocation: a sparsity for each layer: "erk", "uniform", a function (params, sparsity, where=) -> tree, or a
        tree whose total is `sparsity`; None for the same sparsity in each.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.group_lasso(0.5)
      group lasso, sparsity 0.5
        structure       Channels(axis=-1)
        scoring         L2 norm under a group lasso of 0.0001, local
        scheduling      at once, after 0.5 of the training
        initialization  the trained weights (fine-tuning)

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
        initialization="the trained weights (fine-tuning)",
        make=make,
        structure=Channels(),
    )
