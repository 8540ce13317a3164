"""The names that `import jaxprune as jp` offers."""

from jaxprune import allocate, plots, recipes, schedules, scores, sparse_training, surgery
from jaxprune._imp import IMP, imp
from jaxprune._matmul_conv import matmul_conv
from jaxprune._sensitivity import Sensitivity, sensitivity
from jaxprune.at_init import prune_at_init
from jaxprune.calibration import (
    ADMM,
    LayerLog,
    LeastSquares,
    MaskOnly,
    OneShotChoice,
    Refit,
    SparseGPT,
    Swaps,
    calibrate,
    calibration_cost,
    one_shot,
    reconstruct,
    refit,
    swap_refine,
)
from jaxprune.delivery import export, load_weights, save_weights
from jaxprune.healing import distill, reestimate_statistics
from jaxprune.masking import apply_masks, count_zeros, make_masks, shuffle_masks, sparsity, summary
from jaxprune.nnx_training import nnx_state
from jaxprune.own_model import Model
from jaxprune.params import prunable
from jaxprune.recipes import (
    Alternating,
    BeforeTraining,
    Gradual,
    Moving,
    OneShot,
    Recipe,
    Recursive,
    Scoring,
)
from jaxprune.rewind import Finetune, Reinitialize, Rewind, RewindLearningRate
from jaxprune.shrinking import RemoveLayers, RemoveUnits, shrink_in_rounds
from jaxprune.structures import NM, Block, Channels, Layers, Unstructured
from jaxprune.surgery import (
    Coupled,
    Plan,
    compensate,
    find_branches,
    find_groups,
    masked_fn,
    permute,
    plan_from_masks,
    plan_layers,
    plan_removal,
    replace_layers,
)
from jaxprune.targets import plan_to
from jaxprune.tickets import (
    instability,
    late_rewinding,
    linear_connectivity,
    sanity_checks,
    ticket_variants,
)
from jaxprune.train_state import TrainState
from jaxprune.transforms import get_masks, gradual, has_masks, masked, replace_masks

__all__ = [
    "ADMM",
    "IMP",
    "NM",
    "Alternating",
    "BeforeTraining",
    "Block",
    "Channels",
    "Coupled",
    "Finetune",
    "Gradual",
    "LayerLog",
    "Layers",
    "LeastSquares",
    "MaskOnly",
    "Model",
    "Moving",
    "OneShot",
    "OneShotChoice",
    "Plan",
    "Recipe",
    "Recursive",
    "Refit",
    "Reinitialize",
    "RemoveLayers",
    "RemoveUnits",
    "Rewind",
    "RewindLearningRate",
    "Scoring",
    "Sensitivity",
    "SparseGPT",
    "Swaps",
    "TrainState",
    "Unstructured",
    "allocate",
    "apply_masks",
    "calibrate",
    "calibration_cost",
    "compensate",
    "count_zeros",
    "distill",
    "export",
    "find_branches",
    "find_groups",
    "get_masks",
    "gradual",
    "has_masks",
    "imp",
    "instability",
    "late_rewinding",
    "linear_connectivity",
    "load_weights",
    "make_masks",
    "masked",
    "masked_fn",
    "matmul_conv",
    "nnx_state",
    "one_shot",
    "permute",
    "plan_from_masks",
    "plan_layers",
    "plan_removal",
    "plan_to",
    "plots",
    "prunable",
    "prune_at_init",
    "recipes",
    "reconstruct",
    "reestimate_statistics",
    "refit",
    "replace_layers",
    "replace_masks",
    "sanity_checks",
    "save_weights",
    "schedules",
    "scores",
    "sensitivity",
    "shrink_in_rounds",
    "shuffle_masks",
    "sparse_training",
    "sparsity",
    "summary",
    "surgery",
    "swap_refine",
    "ticket_variants",
]
