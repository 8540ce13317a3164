"""Surgery: physically remove channels, heads and units from any function of parameters."""

from typing import TYPE_CHECKING, Any

from jaxprune.surgery.compensation import compensate
from jaxprune.surgery.coupled import Coupled
from jaxprune.surgery.evaluation.verify import Verification
from jaxprune.surgery.groups import Frozen, Group, Groups, Member, find_groups
from jaxprune.surgery.layers import (
    Branch,
    Branches,
    ComposedPlan,
    ComposedVerification,
    LayerPlan,
    LayerVerification,
    Replaced,
    Replacement,
    block_influence,
    branch_norms,
    branch_taylor,
    find_branches,
    greedy_loss_increase,
    loss_increase,
    plan_layers,
    random_branches,
    replace_layers,
)
from jaxprune.surgery.masked_function import masked_fn
from jaxprune.surgery.orders.orders import Orders
from jaxprune.surgery.planning.dimensions import Dimension, Dimensions
from jaxprune.surgery.planning.from_masks import plan_from_masks
from jaxprune.surgery.planning.plan import Plan
from jaxprune.surgery.planning.removal import plan_removal, plan_units
from jaxprune.surgery.reordering import find_orders, permute, unit_orders
from jaxprune.surgery.scores import (
    UnitScores,
    activation_scores,
    batch_norm_scores,
    fpgm_scores,
    l2_scores,
    mean_scores,
    obs_scores,
    reap_scores,
    taylor_scores,
    unit_scores,
)

if TYPE_CHECKING:
    from jaxprune.surgery.nnx_modules import shrink_module

__all__ = [
    "Branch",
    "Branches",
    "ComposedPlan",
    "ComposedVerification",
    "Coupled",
    "Dimension",
    "Dimensions",
    "Frozen",
    "Group",
    "Groups",
    "LayerPlan",
    "LayerVerification",
    "Member",
    "Orders",
    "Plan",
    "Replaced",
    "Replacement",
    "UnitScores",
    "Verification",
    "activation_scores",
    "batch_norm_scores",
    "block_influence",
    "branch_norms",
    "branch_taylor",
    "compensate",
    "find_branches",
    "find_groups",
    "find_orders",
    "fpgm_scores",
    "greedy_loss_increase",
    "l2_scores",
    "loss_increase",
    "masked_fn",
    "mean_scores",
    "obs_scores",
    "permute",
    "plan_from_masks",
    "plan_layers",
    "plan_removal",
    "plan_units",
    "random_branches",
    "reap_scores",
    "replace_layers",
    "shrink_module",
    "taylor_scores",
    "unit_orders",
    "unit_scores",
]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name == "shrink_module":  # importing Flax NNX takes longer than all of surgery
        from jaxprune.surgery.nnx_modules import shrink_module

        globals()[name] = shrink_module
        return shrink_module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
