"""Layers: the branches of residual sums and the steps of scans that can be left out."""

from jaxprune.surgery.layers.branches import Branch, Branches
from jaxprune.surgery.layers.bypass import LayerVerification
from jaxprune.surgery.layers.choosing import plan_layers
from jaxprune.surgery.layers.composed import ComposedPlan, ComposedVerification
from jaxprune.surgery.layers.finding import find_branches
from jaxprune.surgery.layers.layer_plan import LayerPlan
from jaxprune.surgery.layers.replacement import Replaced, Replacement, replace_layers
from jaxprune.surgery.layers.scores import (
    block_influence,
    branch_norms,
    branch_taylor,
    greedy_loss_increase,
    loss_increase,
    random_branches,
)

__all__ = [
    "Branch",
    "Branches",
    "ComposedPlan",
    "ComposedVerification",
    "LayerPlan",
    "LayerVerification",
    "Replaced",
    "Replacement",
    "block_influence",
    "branch_norms",
    "branch_taylor",
    "find_branches",
    "greedy_loss_increase",
    "loss_increase",
    "plan_layers",
    "random_branches",
    "replace_layers",
]
