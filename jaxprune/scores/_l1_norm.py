"""L1 norm of a unit."""

from __future__ import annotations

from jaxprune.params import PyTree
from jaxprune.scores._unit_norm import l1_of_units, unit_norm
from jaxprune.structures import LeafStructure, Unstructured


def l1_norm(params: PyTree, structure: LeafStructure = Unstructured()) -> PyTree:
    """L1 norm of each unit: `score = sum |w|` over the unit's weights.

    The sum grows with the size of the unit. To compare layers whose units differ in size, use `normalize`, or
    `magnitude`, where the score of a unit is the mean.

    Args:
      params: pytree of arrays.
      structure: how weights form units; with `Unstructured` the score is `magnitude` in float32.

    Returns:
      Tree like `params` of float32 scores. Every weight has the norm of its unit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.scores.l1_norm({"w": jnp.array([[3.0, 1.0], [-4.0, 1.0]])}, jp.Channels())["w"]
      Array([[7., 2.],
             [7., 2.]], dtype=float32)

    References:
      Li et al., Pruning Filters for Efficient ConvNets, 2016, arXiv:1608.08710.
    """
    return unit_norm(params, structure, l1_of_units)
