"""Outlier-weighed layerwise sparsity (OWL)."""

from __future__ import annotations

from collections.abc import Callable

from jaxprune.params import PyTree


def owl(
    scores: PyTree,
    sparsity: float,
    M: float = 5.0,
    lam: float = 0.08,
    where: PyTree | None = None,
    layer: Callable[[str], str] | None = None,
) -> PyTree:
    r"""Layers with more outliers among their scores are pruned less.

    \(o_l\) is the share of a layer's scores above M times their mean, and the density
    \(d_l = c + 2\lambda\,(o_l - \min o)/(\max o - \min o)\), with c such that the budget is met.
    Where all layers have the same share, all have the same density.

    Args:
      scores: pytree of scores, Wanda's in the paper.
      sparsity: share of the prunable weights to prune, in [0, 1).
      M: how many times the mean an outlier is above.
      lam: half the spread between the densities.
      where: tree of bools, the leaves to prune; None for `prunable(scores)`.
      layer: path -> name of the layer it belongs to; the leaves of a layer share a density (the paper's layers
        are transformer blocks). None: every leaf is a layer.

    Returns:
      Tree like `scores` of floats for `make_masks`, 0.0 where nothing is pruned. With it exactly
      `round(sparsity * n)` of the n prunable weights go.

    Raises:
      ValueError: a sparsity outside [0, 1); M or lam below 0; traced scores; nothing to prune.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> scores = {"flat": jnp.ones((5, 20)), "spiky": jnp.ones((5, 20)).at[0, 0].set(50)}
      >>> jp.allocate.owl(scores, 0.5)
      {'flat': 0.58, 'spiky': 0.42}

    References:
      Yin et al., Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
      Sparsity, 2023, arXiv:2310.05175.
    """
    raise NotImplementedError
