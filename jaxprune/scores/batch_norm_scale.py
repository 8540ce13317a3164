"""Scales of batch norms (network slimming)."""

from __future__ import annotations

from collections.abc import Mapping

from jaxprune.params import PyTree
from jaxprune.structures import Channels


def batch_norm_scale(params: PyTree, norms: Mapping[str, str], structure: Channels = Channels()) -> PyTree:
    r"""Absolute scale of the norm behind each channel: \(|\gamma_c|\).

    Slimming trains with an L1 penalty on the scales and then removes the channels whose scales are small.

    Args:
      params: pytree of arrays.
      norms: path of a weight -> path of the scale of the norm that takes its output. Both may be a regular
        expression and its replacement: `{r"(.*)Conv_(\d+)/kernel": r"\1BatchNorm_\2/scale"}`.
      structure: `Channels(axis)`: which axis of the weight the scale runs along.

    Returns:
      Tree like `params` of float32 scores: |scale| along the channel axis of each weight named in `norms`, and
      at the scales themselves. Every other leaf has no score: it is NaN, which `make_masks` refuses, so name
      the weights in its `where` as well.

    Raises:
      ValueError: a pattern that matches no leaf, a scale that is not there or does not fit the axis.
      TypeError: a structure other than `Channels`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"Conv_0": {"kernel": jnp.ones((2, 3))}, "BatchNorm_0": {"scale": jnp.array([0.5, -2.0, 0.1])}}
      >>> jp.scores.batch_norm_scale(params, {"Conv_0/kernel": "BatchNorm_0/scale"})["Conv_0"]["kernel"]
      Array([[0.5, 2. , 0.1],
             [0.5, 2. , 0.1]], dtype=float32)

    References:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017, arXiv:1708.06519.
    """
    raise NotImplementedError
