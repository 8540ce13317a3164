"""Recursive physical removal with training in between."""

from jaxprune.shrinking.history import History
from jaxprune.shrinking.loop import Shrunk
from jaxprune.shrinking.planners import RemoveLayers, RemoveUnits, Stage
from jaxprune.shrinking.rounds import shrink_in_rounds

__all__ = ["History", "RemoveLayers", "RemoveUnits", "Shrunk", "Stage", "shrink_in_rounds"]


def __dir__() -> list[str]:
    return sorted(__all__)
