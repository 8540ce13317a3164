"""Calibration: statistics of what weights multiply, and pruning that compensates what it removes."""

from jaxprune.calibration._admm import ADMM
from jaxprune.calibration._calibrate import Statistics, WeightStatistics, calibrate
from jaxprune.calibration._layerwise import LayerResult
from jaxprune.calibration._least_squares import LeastSquares
from jaxprune.calibration._mask_only import MaskOnly
from jaxprune.calibration._moments import Moments
from jaxprune.calibration._reconstruct import reconstruct
from jaxprune.calibration._sparsegpt import SparseGPT
from jaxprune.calibration._swap_refine import swap_refine
from jaxprune.calibration._swaps import Swaps

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
