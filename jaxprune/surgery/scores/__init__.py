"""Scores of the units of groups: pure functions that return `UnitScores`, one function per file."""

from jaxprune.surgery.scores._unit_scores import Score, UnitScores, unit_scores
from jaxprune.surgery.scores.activation import activation_scores
from jaxprune.surgery.scores.batch_norm import batch_norm_scores
from jaxprune.surgery.scores.fpgm import fpgm_scores
from jaxprune.surgery.scores.l2 import l2_scores
from jaxprune.surgery.scores.mean import mean_scores
from jaxprune.surgery.scores.obs import obs_scores
from jaxprune.surgery.scores.reap import reap_scores
from jaxprune.surgery.scores.taylor import taylor_scores

__all__ = [
    "Score",
    "UnitScores",
    "activation_scores",
    "batch_norm_scores",
    "fpgm_scores",
    "l2_scores",
    "mean_scores",
    "obs_scores",
    "reap_scores",
    "taylor_scores",
    "unit_scores",
]
