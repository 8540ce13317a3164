"""Scoring: which weights are pruned first. A score tree is like the parameters; larger means keep."""

from jaxprune.scores._batch_norm_scale import batch_norm_scale
from jaxprune.scores._fisher import fisher
from jaxprune.scores._fpgm import fpgm
from jaxprune.scores._gauss_newton import gauss_newton
from jaxprune.scores._grasp import grasp
from jaxprune.scores._l1_norm import l1_norm
from jaxprune.scores._l2_norm import l2_norm
from jaxprune.scores._lamp import lamp
from jaxprune.scores._magnitude import magnitude
from jaxprune.scores._normalize import normalize
from jaxprune.scores._random import random
from jaxprune.scores._ria import ria
from jaxprune.scores._snip import snip
from jaxprune.scores._synflow import synflow
from jaxprune.scores._taylor import taylor
from jaxprune.scores._wanda import wanda

__all__ = [
    "batch_norm_scale",
    "fisher",
    "fpgm",
    "gauss_newton",
    "grasp",
    "l1_norm",
    "l2_norm",
    "lamp",
    "magnitude",
    "normalize",
    "random",
    "ria",
    "snip",
    "synflow",
    "taylor",
    "wanda",
]


def __dir__() -> list[str]:
    return sorted(__all__)
