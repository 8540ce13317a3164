"""Scoring: what goes first. A score tree is like the parameters; larger means keep."""

from jaxprune.scores.batch_norm_scale import batch_norm_scale
from jaxprune.scores.fisher import fisher
from jaxprune.scores.fpgm import fpgm
from jaxprune.scores.grasp import grasp
from jaxprune.scores.l1_norm import l1_norm
from jaxprune.scores.l2_norm import l2_norm
from jaxprune.scores.lamp import lamp
from jaxprune.scores.magnitude import magnitude
from jaxprune.scores.normalize import normalize
from jaxprune.scores.random import random
from jaxprune.scores.ria import ria
from jaxprune.scores.snip import snip
from jaxprune.scores.synflow import synflow
from jaxprune.scores.taylor import taylor
from jaxprune.scores.wanda import wanda

__all__ = [
    "batch_norm_scale",
    "fisher",
    "fpgm",
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
