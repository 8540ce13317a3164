"""Magnitude."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, is_float_array


def magnitude(params: PyTree) -> PyTree:
    """Absolute value of each weight: `score = |w|`.

    Args:
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged.

    Returns:
      Tree like `params` of scores in the dtype of each parameter, so that nothing is rounded.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.scores.magnitude({"w": jnp.array([-2.0, 1.0])})
      {'w': Array([2., 1.], dtype=float32)}

    References:
      Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015, arXiv:1506.02626.
    """
    return jax.tree.map(lambda w: jnp.abs(w) if is_float_array(w) else w, params)
