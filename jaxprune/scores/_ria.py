"""RIA: relative importance and activations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.params import PyTree
from jaxprune.scores._wanda import score_matrices, weighted
from jaxprune.statistics import Statistics


def ria(params: PyTree, stats: Statistics, power: float = 0.5) -> PyTree:
    r"""Relative importance of a weight times a power of the norm of its input.

    $score_{io} = (|w_{io}| / \sum_k |w_{ko}| + |w_{io}| / \sum_k |w_{ik}|) \cdot \|X_i\|_2^{power}$

    Args:
      params: pytree of arrays.
      stats: the result of `jp.calibrate` for these parameters.
      power: exponent of the norm; 0 ignores the activations.

    Returns:
      Tree like `params` of float32 scores. Parameters without statistics have NaN, as in `wanda`.

    Raises:
      ValueError: if the statistics are those of other parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, 1.0], [3.0, 1.0]])}
      >>> stats = jp.calibrate(lambda params, x: x @ params["w"], params, [jnp.ones((1, 2))])
      >>> jp.scores.ria(params, stats)["w"]
      Array([[0.75, 1.  ],
             [1.5 , 0.75]], dtype=float32)

    References:
      Zhang et al., Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models, 2024,
      ICLR.
    """

    def score(w: np.ndarray, norms: np.ndarray) -> np.ndarray:
        return weighted(np.asarray(relative_importance(jnp.asarray(w))), norms, power)

    return score_matrices(params, stats, score)


def relative_importance(w: jax.Array) -> jax.Array:
    """|w| over the sum of |w| of its output, plus |w| over that of its input; w is (..., inputs, outputs)."""
    size = jnp.abs(w)
    of_output = jnp.sum(size, axis=-2, keepdims=True)
    of_input = jnp.sum(size, axis=-1, keepdims=True)
    return size / jnp.where(of_output > 0, of_output, 1.0) + size / jnp.where(of_input > 0, of_input, 1.0)
