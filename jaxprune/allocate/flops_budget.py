"""A budget of FLOPs in place of weights."""

from __future__ import annotations

from jaxprune.params import PyTree


def flops(scores: PyTree, sparsity: float, cost: PyTree, where: PyTree | None = None) -> PyTree:
    """Prunes the lowest scores per FLOP until that share of the prunable leaves' FLOPs is gone.

    A weight costs its leaf's FLOPs over its leaf's size, so a convolution on a large image is pruned before a
    dense layer of equal scores. (The same sparsity in each leaf is what `uniform` gives, in FLOPs too.)

    Args:
      scores: pytree of non-negative scores, larger = keep.
      sparsity: share of the FLOPs to remove, in [0, 1).
      cost: tree like `scores` of FLOPs a leaf, as from `weight_flops`.
      where: tree of bools, the leaves to prune; None for `prunable(scores)`.

    Returns:
      Tree like `scores` of floats for `make_masks`, 0.0 where nothing is pruned. The FLOPs removed reach the
      share and pass it by less than one weight's.

    Raises:
      ValueError: a sparsity outside [0, 1); traced or negative scores; no FLOPs; nothing to prune.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> scores = {"cheap": jnp.array([[1.0, 2.0]]), "dear": jnp.array([[1.5, 5.0]])}
      >>> jp.allocate.flops(scores, 0.45, {"cheap": 2, "dear": 20})
      {'cheap': 0.0, 'dear': 0.5}
    """
    raise NotImplementedError
