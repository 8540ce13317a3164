"""Layers: the branches of residual sums and the steps of scans that can be left out."""

from jaxprune.surgery.layers.branches import Branch, Branches, find_branches
from jaxprune.surgery.layers.choosing import plan_layers
from jaxprune.surgery.layers.layer_plan import LayerPlan, LayerVerification
from jaxprune.surgery.layers.scores import branch_norms

__all__ = [
    "Branch",
    "Branches",
    "LayerPlan",
    "LayerVerification",
    "branch_norms",
    "find_branches",
    "plan_layers",
]
