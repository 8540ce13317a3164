"""Scores of branches, larger = keep."""

from jaxprune.surgery.layers.scores.influence import block_influence
from jaxprune.surgery.layers.scores.loss import greedy_loss_increase, loss_increase
from jaxprune.surgery.layers.scores.norm import branch_norms
from jaxprune.surgery.layers.scores.random import random_branches
from jaxprune.surgery.layers.scores.taylor import branch_taylor

__all__ = [
    "block_influence",
    "branch_norms",
    "branch_taylor",
    "greedy_loss_increase",
    "loss_increase",
    "random_branches",
]
