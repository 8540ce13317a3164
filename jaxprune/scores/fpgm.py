"""Distance to the geometric median of a layer's filters (FPGM)."""

from __future__ import annotations

from jaxprune.params import PyTree
from jaxprune.structures import Channels


def fpgm(params: PyTree, structure: Channels = Channels()) -> PyTree:
    r"""How far a filter is from the others of its layer: \(\frac1C\sum_j \lVert F_i - F_j\rVert_2\).

    The geometric median is where that sum is least; the filters next to it, which have the lowest scores, are
    those that the others can stand in for. A small filter is not one of them if it is alone.

    Args:
      params: pytree of arrays; leaves that are not floating-point arrays pass through unscored.
      structure: `Channels(axis)`: which axis counts the filters.

    Returns:
      Tree like `params` of float32 scores, a filter's at every one of its weights. A leaf without that axis
      scores 0.

    Raises:
      TypeError: a structure other than `Channels`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.scores.fpgm({"w": jnp.array([[0.0, 1.0, 5.0]])})["w"] * 3
      Array([[6., 5., 9.]], dtype=float32)

    References:
      He, Liu, Wang, Hu, Yang, Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
      Acceleration, 2018, arXiv:1811.00250.
    """
    raise NotImplementedError
