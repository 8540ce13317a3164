"""Healing after pruning: training toward the dense model, and new statistics of activations."""

from jaxprune.healing._distill import Distilled, distill
from jaxprune.healing._reestimate_statistics import reestimate_statistics

__all__ = ["Distilled", "distill", "reestimate_statistics"]


def __dir__() -> list[str]:
    return sorted(__all__)
