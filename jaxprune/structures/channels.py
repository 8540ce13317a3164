"""Channels: the slices along one axis, by default the output channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from jaxprune.structures.by_leaf import LeafUnits, cut_by_leaf
from jaxprune.structures.mean import mean_over
from jaxprune.structures.structure import Shape
from jaxprune.tree_nodes import Leaf


@dataclasses.dataclass(frozen=True)
class Channels:
    """Every index along `axis` is a unit: its whole slice is kept or pruned. The mask is (1, ..., C, ..., 1).

    The score of a channel is the mean score of its weights (for magnitudes: the L1 norm over the size).

    Args:
      axis: the channel axis. The default -1 is the output of Flax and Haiku kernels; use 0 for Equinox and torch.

    Raises:
      ValueError: if a leaf does not have this axis (the error names the leaf).

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.make_masks({"w": jnp.array([[3.0, 1.0], [2.0, 1.0]])}, 0.5, structure=jp.Channels())["w"]
      Array([[ True, False]], dtype=bool)

    References:
      Li et al., Pruning Filters for Efficient ConvNets, 2016, arXiv:1608.08710.
    """

    axis: int = -1

    @property
    def fixed_sparsity(self) -> None:
        return None

    def check_scope(self, scope: str) -> None:
        del scope

    def check_sparsity(self, share: Any, path: str) -> None:
        del share, path

    def default_leaves(self, leaves: Sequence[Leaf]) -> None:
        del leaves

    def cut(self, leaves: Sequence[Leaf], chosen: Sequence[int]) -> LeafUnits:
        return cut_by_leaf(self, leaves, chosen)

    def check(self, path: str, shape: Shape) -> None:
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(f"Channels `axis` {self.axis} is out of range for {path!r} of shape {shape}.")

    def unit_shape(self, shape: Shape) -> Shape:
        axis = self.axis % len(shape)
        return tuple(n if i == axis else min(n, 1) for i, n in enumerate(shape))

    def unit_sizes(self, shape: Shape) -> int:
        size = 1
        for i, n in enumerate(shape):
            size *= 1 if i == self.axis % len(shape) else n
        return size

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        axis = self.axis % scores.ndim
        return mean_over(scores, tuple(i for i in range(scores.ndim) if i != axis))

    def expand(self, units: jax.Array, shape: Shape) -> jax.Array:
        del shape
        return units


def check_channels(structure: Any) -> None:
    """Raises TypeError for a structure that is not a `Channels`."""
    if not isinstance(structure, Channels):
        raise TypeError(f"`structure` must be Channels(axis), got {structure!r}.")
