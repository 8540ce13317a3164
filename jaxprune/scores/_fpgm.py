"""Distance to the geometric median of a layer's filters (FPGM)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.float_range import exponent_of, magnitude_bits, scaled, unscaled, widened
from jaxprune.meshes import gathered, placed_like
from jaxprune.params import PyTree, is_float_array
from jaxprune.structures import Channels
from jaxprune.structures.channels import check_channels


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
    check_channels(structure)
    return jax.tree.map(lambda w: _layer(w, structure.axis) if is_float_array(w) else w, params)


def _layer(w: jax.Array, axis: int) -> jax.Array:
    if w.size == 0 or not -w.ndim <= axis < w.ndim:
        return jnp.zeros(w.shape, jnp.float32)
    channels = jnp.moveaxis(widened(gathered(jnp.asarray(w))), axis, 0)
    largest = jax.lax.bitcast_convert_type(jnp.max(magnitude_bits(channels)), jnp.float32)
    exponent = exponent_of(largest)  # squares of very small or large weights leave the range of float32
    channels = scaled(channels, exponent)
    filters = channels.reshape(len(channels), -1)

    # Differences one filter at a time: a product of the filters with each other would lose the small distances.
    def distance(one: jax.Array) -> jax.Array:
        return jnp.mean(jnp.linalg.norm(filters - one[None], axis=1))

    distances = unscaled(jax.lax.map(distance, filters), exponent)
    scores = distances.reshape([-1 if i == axis % w.ndim else 1 for i in range(w.ndim)])
    return placed_like(jnp.broadcast_to(scores, w.shape), w)
