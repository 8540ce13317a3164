"""Layers: the branches of residual sums and the steps of scans that can be left out."""

from jaxprune.surgery.layers.branches import Branch, Branches, find_branches

__all__ = ["Branch", "Branches", "find_branches"]
