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
    r"""Mean distance of a filter to the filters of its layer: \(\frac1C\sum_j \lVert F_i - F_j\rVert_2\).

    The geometric median minimizes that sum. The filters nearest to it have the lowest scores: the remaining
    filters can best replace them. A filter of small norm does not score low if it is far from all others.

    Args:
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged.
      structure: `Channels(axis)`: the axis along which the filters lie.

    Returns:
      Tree like `params` of float32 scores. Every weight has the score of its filter. A leaf without that axis
      has the score 0.

    Raises:
      TypeError: if the structure is not `Channels`.

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

    # Differences of one filter at a time: distances from a product of all filters would lose the small ones.
    def distance(one: jax.Array) -> jax.Array:
        return jnp.mean(jnp.linalg.norm(filters - one[None], axis=1))

    distances = unscaled(jax.lax.map(distance, filters), exponent)
    scores = distances.reshape([-1 if i == axis % w.ndim else 1 for i in range(w.ndim)])
    return placed_like(jnp.broadcast_to(scores, w.shape), w)
