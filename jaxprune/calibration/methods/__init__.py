"""How the weights of one layer are pruned (`Method`), and how pruned weights are improved (`Refinement`)."""

from jaxprune.calibration.methods.admm import ADMM
from jaxprune.calibration.methods.least_squares import LeastSquares
from jaxprune.calibration.methods.mask_only import MaskOnly
from jaxprune.calibration.methods.method import Method, Refinement
from jaxprune.calibration.methods.refit import Refit
from jaxprune.calibration.methods.sparsegpt import SparseGPT
from jaxprune.calibration.methods.swaps import Swaps

__all__ = ["ADMM", "LeastSquares", "MaskOnly", "Method", "Refinement", "Refit", "SparseGPT", "Swaps"]
