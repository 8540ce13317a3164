"""Layer-adaptive magnitude (LAMP)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.float_range import exponent_of, magnitude_bits, scaled, widened
from jaxprune.meshes import gathered, placed_like
from jaxprune.params import PyTree, is_float_array


def lamp(params: PyTree) -> PyTree:
    r"""Square of a weight over the sum of the squares in its layer that are not smaller.

    \(w_u^2 / \sum_{v \ge u} w_v^2\), where the sum is over weight u and all weights of the leaf that follow u in
    ascending order of magnitude. Equal magnitudes are ordered by index, as in `make_masks`. The largest weight of
    each leaf has the score 1. So with scope "global" one threshold gives each layer its sparsity, and no layer
    loses its last weight before every layer is down to one weight.

    Args:
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged.

    Returns:
      Tree like `params` of float32 scores in [0, 1]. A leaf of zeros has zero scores.

    Note:
      Each leaf is sorted separately. A sharded leaf is gathered for the sort.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.scores.lamp({"w": jnp.array([3.0, -1.0, 4.0])})["w"] * jnp.array([25.0, 26.0, 1.0])
      Array([9., 1., 1.], dtype=float32)

    References:
      Lee, Park, Mo, Ahn, Shin, Layer-adaptive sparsity for the Magnitude-based Pruning, 2020,
      arXiv:2010.07611.
    """
    return jax.tree.map(lambda w: _layer(w) if is_float_array(w) else w, params)


def _layer(w: jax.Array) -> jax.Array:
    if w.size == 0:
        return jnp.zeros(w.shape, jnp.float32)
    bits = magnitude_bits(widened(gathered(jnp.asarray(w)))).ravel()
    order = jnp.argsort(bits, stable=True)
    rising = jax.lax.bitcast_convert_type(bits[order], jnp.float32)
    # Over the largest: squares of very small or large weights leave the range of float32.
    squares = jnp.square(scaled(rising, exponent_of(rising[-1])))
    left = jnp.cumsum(squares[::-1])[::-1]
    scores = (
        jnp.zeros(w.size, jnp.float32)
        .at[order]
        .set(squares / jnp.where(left > 0, left, 1), unique_indices=True)
    )
    return placed_like(scores.reshape(w.shape), w)
