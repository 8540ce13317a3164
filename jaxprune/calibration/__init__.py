"""Calibration: input statistics of weights, and pruning that compensates for the removed weights."""

from jaxprune.calibration._calibrate import calibrate
from jaxprune.calibration._calibration_cost import calibration_cost
from jaxprune.calibration._layer_log import LayerLog
from jaxprune.calibration._one_shot import OneShotChoice, one_shot
from jaxprune.calibration._reconstruct import reconstruct
from jaxprune.calibration._refit import refit
from jaxprune.calibration._swap_refine import swap_refine
from jaxprune.calibration.engine.cost import CalibrationCost
from jaxprune.calibration.engine.results import LayerResult, WindowResult
from jaxprune.calibration.methods import ADMM, LeastSquares, MaskOnly, Refit, SparseGPT, Swaps
from jaxprune.statistics import Moments, Statistics, WeightStatistics

__all__ = [
    "ADMM",
    "CalibrationCost",
    "LayerLog",
    "LayerResult",
    "LeastSquares",
    "MaskOnly",
    "Moments",
    "OneShotChoice",
    "Refit",
    "SparseGPT",
    "Statistics",
    "Swaps",
    "WeightStatistics",
    "WindowResult",
    "calibrate",
    "calibration_cost",
    "one_shot",
    "reconstruct",
    "refit",
    "swap_refine",
]


def __dir__() -> list[str]:
    return sorted(__all__)
