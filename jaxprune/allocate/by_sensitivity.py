"""Sparsities from a table of sensitivities, under a budget."""

from __future__ import annotations

from typing import Literal

from jaxprune.params import PyTree
from jaxprune.sensitivity import Sensitivity


def from_sensitivity(
    table: Sensitivity,
    sparsity: float,
    budget: Literal["params", "flops"] = "params",
    cost: PyTree | None = None,
) -> dict[str, float]:
    """Per-layer sparsities that cost the least loss, by the table, under a budget of weights or FLOPs.

    Args:
      table: what `sensitivity` measured.
      sparsity: share of the budget to remove, in [0, 1).
      budget: "params" counts prunable weights, "flops" their FLOPs.
      cost: for "flops": tree of FLOPs a leaf, as from `weight_flops`.

    Returns:
      Path -> sparsity for every leaf, 0.0 where nothing is pruned: `make_masks` takes it as it is, whatever the
      pytree's type. Under "params" exactly `round(sparsity * n)` weights go (units are rounded layer by layer).

    Raises:
      ValueError: a sparsity outside [0, 1) or beyond what the grid reaches; a budget without its cost.
    """
    raise NotImplementedError
