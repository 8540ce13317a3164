"""Calibration: statistics of what weights multiply, and pruning that compensates what it removes."""

from jaxprune.calibration.admm import ADMM
from jaxprune.calibration.calibrate import Statistics, WeightStatistics, calibrate
from jaxprune.calibration.layerwise import LayerResult
from jaxprune.calibration.least_squares import LeastSquares
from jaxprune.calibration.mask_only import MaskOnly
from jaxprune.calibration.moments import Moments
from jaxprune.calibration.reconstruct import reconstruct
from jaxprune.calibration.sparsegpt import SparseGPT
from jaxprune.calibration.swap_refine import swap_refine
from jaxprune.calibration.swaps import Swaps

__all__ = [
    "ADMM",
    "LayerResult",
    "LeastSquares",
    "MaskOnly",
    "Moments",
    "SparseGPT",
    "Statistics",
    "Swaps",
    "WeightStatistics",
    "calibrate",
    "reconstruct",
    "swap_refine",
]
