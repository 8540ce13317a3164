"""Masks: which units may be pruned, how many of them and which ones; applying masks and summarizing them."""

from jaxprune.masking.apply import apply_masks
from jaxprune.masking.criterion import Criterion
from jaxprune.masking.make import make_masks
from jaxprune.masking.share import sparsity
from jaxprune.masking.shuffle import shuffle_masks
from jaxprune.masking.table import summary
from jaxprune.masking.units import Units
from jaxprune.masking.zeros import count_zeros

__all__ = [
    "Criterion",
    "Units",
    "apply_masks",
    "count_zeros",
    "make_masks",
    "shuffle_masks",
    "sparsity",
    "summary",
]
