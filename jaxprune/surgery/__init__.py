"""Surgery: physically remove channels, heads and units from any function of parameters."""

from jaxprune.surgery.groups import Frozen, Group, Groups, Member, find_groups
from jaxprune.surgery.nnx_modules import shrink_module
from jaxprune.surgery.plan import Plan
from jaxprune.surgery.planning import plan_removal, plan_units, unit_scores
from jaxprune.surgery.verify import Verification

__all__ = [
    "Frozen",
    "Group",
    "Groups",
    "Member",
    "Plan",
    "Verification",
    "find_groups",
    "plan_removal",
    "plan_units",
    "shrink_module",
    "unit_scores",
]
