"""The same sparsity in each layer."""

from __future__ import annotations

from jaxprune.allocate._exact import allocation
from jaxprune.params import PyTree


def uniform(params: PyTree, sparsity: float, where: PyTree | None = None) -> PyTree:
    """The same sparsity in every leaf, up to the rounding that makes the total exact.

    Args:
      params: pytree of arrays (or `jax.ShapeDtypeStruct`s).
      sparsity: fraction of the prunable weights to prune, in [0, 1).
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.

    Returns:
      Tree like `params` of floats for `make_masks`, 0.0 for leaves that are not pruned. In total exactly
      `round(sparsity * n)` of the n prunable weights are pruned.

    Raises:
      ValueError: if the sparsity is outside [0, 1), or there is nothing to prune.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.allocate.uniform({"w": jnp.ones((4, 5)), "b": jnp.ones(5)}, 0.9)
      {'b': 0.0, 'w': 0.9}
    """
    return allocation(
        params, sparsity, where, lambda sizes, shapes, total: [total / max(sum(sizes), 1)] * len(sizes)
    )
