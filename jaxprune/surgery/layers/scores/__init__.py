"""Scores of branches, larger = keep."""

from jaxprune.surgery.layers.scores.norm import branch_norms

__all__ = ["branch_norms"]
