"""L2 norm of a unit."""

from __future__ import annotations

from jaxprune.params import PyTree
from jaxprune.scores._unit_norm import l2_of_units, unit_norm
from jaxprune.structures import LeafStructure, Unstructured


def l2_norm(params: PyTree, structure: LeafStructure = Unstructured()) -> PyTree:
    """L2 norm of each unit: `score = sqrt(sum w^2)` over the unit's weights.

    Args:
      params: pytree of arrays.
      structure: how weights form units; with `Unstructured` the score is `magnitude` in float32.

    Returns:
      Tree like `params` of float32 scores. Every weight has the norm of its unit.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.scores.l2_norm({"w": jnp.array([[3.0, 1.0], [-4.0, 0.0]])}, jp.Channels())["w"]
      Array([[5., 1.],
             [5., 1.]], dtype=float32)

    References:
      Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016, arXiv:1608.03665.
    """
    return unit_norm(params, structure, l2_of_units)
