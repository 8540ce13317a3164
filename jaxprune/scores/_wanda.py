"""Wanda: weights and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.statistics import Statistics


def wanda(params: PyTree, stats: Statistics, per_output: bool = True) -> PyTree:
    r"""Magnitude of a weight times the norm of its input: `score = |w| * ||X_i||_2`.

    Wanda compares a weight only with the weights of the same output. With `per_output` the score of a weight
    is therefore its rank among them, as a fraction, and `make_masks(..., scope="local")` prunes the same fraction
    of every output. For structures, or one threshold per layer, use the plain scores.

    Args:
      params: pytree of arrays.
      stats: the result of `jp.calibrate` for these parameters.
      per_output: return ranks within each output, in [0, 1), instead of the plain scores.

    Returns:
      Tree like `params` of float32 scores. Parameters without statistics have NaN, which `make_masks` refuses:
      leave them out of `where`.

    Raises:
      ValueError: if the statistics are those of other parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, 5.0], [3.0, 10.0]])}
      >>> stats = jp.calibrate(lambda params, x: x @ params["w"], params, [jnp.array([[4.0, 1.0]])])
      >>> jp.scores.wanda(params, stats, per_output=False)["w"]
      Array([[ 4., 20.],
             [ 3., 10.]], dtype=float32)
      >>> jp.make_masks(jp.scores.wanda(params, stats), 0.5, scope="local")["w"]
      Array([[ True,  True],
             [False, False]], dtype=bool)

    References:
      Sun et al., A Simple and Effective Pruning Approach for Large Language Models, 2023, arXiv:2306.11695.
    """

    def score(w: np.ndarray, norms: np.ndarray) -> np.ndarray:
        size = np.abs(w)
        plain = weighted(size, norms)
        if not per_output:
            return plain
        # Where inputs are always 0, the magnitudes of the weights decide their order.
        order = np.lexsort((size, plain), axis=1)
        return (np.argsort(order, axis=1, kind="stable") / plain.shape[1]).astype(np.float32)

    return score_matrices(params, stats, score)


def weighted(sizes: Any, norms: Any, power: float = 1) -> Any:
    """Magnitudes of weights (..., inputs, outputs) times a power of the norms of their inputs (..., inputs)."""
    return sizes * norms[..., None] ** power


def score_matrices(
    params: PyTree, stats: Statistics, score: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> PyTree:
    """Scores each weight as matrices (groups, inputs, outputs), from them and their inputs' norms.

    Where two uses share entries of a parameter, their scores add up.
    """
    paths, leaves, treedef = flatten_with_paths(params)
    lost = [path for path in stats if path not in set(paths)]
    if lost:
        raise ValueError(f"`stats` must be of these parameters, but has {lost[0]!r}, which `params` lacks.")
    scores = []
    for path, leaf in zip(paths, leaves, strict=True):
        if path not in stats:
            scores.append(jnp.full(jnp.shape(leaf), jnp.nan, jnp.float32))
            continue
        of_leaf = stats[path]
        if of_leaf.shape != leaf.shape:
            raise ValueError(
                f"`stats` must be of these parameters, got {of_leaf.shape} at {path!r} of shape {leaf.shape}."
            )
        w = np.asarray(leaf, np.float32)
        values = [
            score(matrix.of(w), np.asarray(m.norms))
            for matrix, m in zip(of_leaf.matrices, of_leaf.moments, strict=True)
        ]
        scores.append(jnp.asarray(of_leaf.spread(values), jnp.float32))
    return jax.tree.unflatten(treedef, scores)
