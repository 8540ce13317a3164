"""Enforcement: optax wrappers that keep pruned weights at exactly zero."""

from jaxprune.transforms._gradual import GradualState, gradual
from jaxprune.transforms._masked import MaskedState, masked
from jaxprune.transforms._masks_in_state import get_masks, has_masks, replace_masks

__all__ = ["GradualState", "MaskedState", "get_masks", "gradual", "has_masks", "masked", "replace_masks"]


def __dir__() -> list[str]:
    return sorted(__all__)
