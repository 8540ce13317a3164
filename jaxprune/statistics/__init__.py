"""Statistics of the inputs of weights: `calibrate` makes them, scores and methods read them."""

from jaxprune.statistics.moments import Kind, Moments
from jaxprune.statistics.weights import Statistics, WeightStatistics

__all__ = ["Kind", "Moments", "Statistics", "WeightStatistics"]


def __dir__() -> list[str]:
    return sorted(__all__)
