"""Calibration: statistics of what weights multiply, and pruning that compensates what it removes."""

from jaxprune.calibration.calibrate import Statistics, WeightStatistics, calibrate
from jaxprune.calibration.moments import Moments

__all__ = ["Moments", "Statistics", "WeightStatistics", "calibrate"]
