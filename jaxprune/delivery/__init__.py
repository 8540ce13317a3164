"""Delivery: a model as files that run elsewhere, and weights without their zeros."""

from jaxprune.delivery._export import export
from jaxprune.delivery.report import Exported
from jaxprune.delivery.weights import load_weights, save_weights

__all__ = ["Exported", "export", "load_weights", "save_weights"]


def __dir__() -> list[str]:
    return sorted(__all__)
