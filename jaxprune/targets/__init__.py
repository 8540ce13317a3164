"""Targets: plans that meet a share of the dense model's latency, FLOPs, parameters or bytes."""

from jaxprune.targets._plan_to import plan_to
from jaxprune.targets.measured import Measured, Measurement

__all__ = ["Measured", "Measurement", "plan_to"]


def __dir__() -> list[str]:
    return sorted(__all__)
