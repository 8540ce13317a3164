"""Scoring: what goes first. A score tree is like the parameters; larger means keep."""

from jaxprune.scores.l1_norm import l1_norm
from jaxprune.scores.l2_norm import l2_norm
from jaxprune.scores.magnitude import magnitude
from jaxprune.scores.normalize import normalize
from jaxprune.scores.random import random
from jaxprune.scores.ria import ria
from jaxprune.scores.wanda import wanda

__all__ = ["l1_norm", "l2_norm", "magnitude", "normalize", "random", "ria", "wanda"]
