"""The names that `import jaxprune as jp` offers."""

from jaxprune import allocate, recipes, schedules, scores, sparse_training, surgery
from jaxprune._imp import IMP, imp
from jaxprune._matmul_conv import matmul_conv
from jaxprune._sensitivity import Sensitivity, sensitivity
from jaxprune.at_init import prune_at_init
from jaxprune.calibration import (
    ADMM,
    LeastSquares,
    MaskOnly,
    SparseGPT,
    Swaps,
    calibrate,
    reconstruct,
    swap_refine,
)
from jaxprune.masking import apply_masks, make_masks, shuffle_masks, sparsity, summary
from jaxprune.params import prunable
from jaxprune.rewind import Finetune, Reinitialize, Rewind, RewindLearningRate
from jaxprune.structures import NM, Block, Channels, Layers, Unstructured
from jaxprune.surgery import (
    Coupled,
    Plan,
    compensate,
    find_branches,
    find_groups,
    masked_fn,
    plan_from_masks,
    plan_layers,
    plan_removal,
    replace_layers,
)
from jaxprune.transforms import get_masks, gradual, has_masks, masked, replace_masks

__all__ = [
    "ADMM",
    "IMP",
    "NM",
    "Block",
    "Channels",
    "Coupled",
    "Finetune",
    "Layers",
    "LeastSquares",
    "MaskOnly",
    "Plan",
    "Reinitialize",
    "Rewind",
    "RewindLearningRate",
    "Sensitivity",
    "SparseGPT",
    "Swaps",
    "Unstructured",
    "allocate",
    "apply_masks",
    "calibrate",
    "compensate",
    "find_branches",
    "find_groups",
    "get_masks",
    "gradual",
    "has_masks",
    "imp",
    "make_masks",
    "masked",
    "masked_fn",
    "matmul_conv",
    "plan_from_masks",
    "plan_layers",
    "plan_removal",
    "prunable",
    "prune_at_init",
    "recipes",
    "reconstruct",
    "replace_layers",
    "replace_masks",
    "schedules",
    "scores",
    "sensitivity",
    "shuffle_masks",
    "sparse_training",
    "sparsity",
    "summary",
    "surgery",
    "swap_refine",
]
