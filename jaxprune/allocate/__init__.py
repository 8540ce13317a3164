"""Allocation: the sparsity of each leaf. Each function returns a tree of sparsities that `make_masks` takes."""

from jaxprune.allocate._by_scores import from_scores
from jaxprune.allocate._by_sensitivity import from_sensitivity
from jaxprune.allocate._erdos_renyi import erk
from jaxprune.allocate._flops_budget import flops
from jaxprune.allocate._outliers import owl
from jaxprune.allocate._same import uniform
from jaxprune.allocate._weight_flops import weight_flops

__all__ = ["erk", "flops", "from_scores", "from_sensitivity", "owl", "uniform", "weight_flops"]


def __dir__() -> list[str]:
    return sorted(__all__)
