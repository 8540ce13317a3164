"""Linear maps that stand in for removed layers."""

from jaxprune.surgery.layers.replacement.replacing import Replaced, Replacement, replace_layers

__all__ = ["Replaced", "Replacement", "replace_layers"]
