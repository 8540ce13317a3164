"""Sparse training: masks that change, or weights that are pulled towards zero, while the network trains.

Every method is an optax wrapper whose state is a NamedTuple with a field `masks`, which `jp.get_masks` reads.
`static`, `set`, `rigl`, `ac_dc`, `movement`, `slimming` and `group_lasso` keep pruned parameters at zero, and the
model is called as usual. `ste`, `sr_ste` and `top_kast` (and `movement` with `regrow=True`) train dense weights:
compute the loss at `straight_through(params, jp.get_masks(opt_state))`, and deploy
`jp.apply_masks(params, jp.get_masks(opt_state))`. Gradual magnitude pruning is `jp.gradual`.
"""

from jaxprune.sparse_training._ac_dc import ACDCState, ac_dc
from jaxprune.sparse_training._dynamic import DynamicState
from jaxprune.sparse_training._group_lasso import GroupLassoState, group_lasso, group_penalty
from jaxprune.sparse_training._movement import MovementState, movement
from jaxprune.sparse_training._rigl import rigl
from jaxprune.sparse_training._set import set
from jaxprune.sparse_training._slimming import SlimmingState, norm_scales, slimming
from jaxprune.sparse_training._sr_ste import sr_ste
from jaxprune.sparse_training._static import random_masks, static
from jaxprune.sparse_training._ste import STEState, ste
from jaxprune.sparse_training._straight_through import straight_through
from jaxprune.sparse_training._top_kast import TopKASTState, top_kast

__all__ = [
    "ACDCState",
    "DynamicState",
    "GroupLassoState",
    "MovementState",
    "STEState",
    "SlimmingState",
    "TopKASTState",
    "ac_dc",
    "group_lasso",
    "group_penalty",
    "movement",
    "norm_scales",
    "random_masks",
    "rigl",
    "set",
    "slimming",
    "sr_ste",
    "static",
    "ste",
    "straight_through",
    "top_kast",
]


def __dir__() -> list[str]:
    return sorted(__all__)
