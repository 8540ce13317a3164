"""The Erdős–Rényi-kernel allocation."""

from __future__ import annotations

from jaxprune.allocate._exact import Shape, allocation
from jaxprune.params import PyTree


def erk(params: PyTree, sparsity: float, where: PyTree | None = None) -> PyTree:
    r"""Density proportional to the sum of a leaf's dimensions over their product.

    \(d_l = \varepsilon \sum_i n_i / \prod_i n_i\): small layers are denser. \(\varepsilon\) is chosen to meet the
    budget. A leaf whose density would exceed 1 is dense, and \(\varepsilon\) is solved again for the others.

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
      >>> params = {"small": jnp.ones((4, 4)), "large": jnp.ones((16, 16))}
      >>> jp.allocate.erk(params, 0.5)  # densities of 8/16 and 32/256, times 3.4: the small one is full
      {'large': 0.53125, 'small': 0.0}

    References:
      Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired
      by network science, 2017, arXiv:1707.04780.
      Evci, Gale, Menick, Castro, Elsen, Rigging the Lottery: Making All Tickets Winners, 2019,
      arXiv:1911.11134.
    """
    return allocation(params, sparsity, where, _shares)


def _shares(sizes: list[int], shapes: list[Shape], total: int) -> list[float]:
    raw = [sum(shape) / n if n else 0.0 for shape, n in zip(shapes, sizes, strict=True)]
    open_leaves = {i for i, n in enumerate(sizes) if n}
    densities = [1.0] * len(sizes)
    while open_leaves:
        # A dense leaf keeps less of the budget than its part of it, so the rest of the budget is positive.
        left = sum(sizes) - total - sum(n for i, n in enumerate(sizes) if i not in open_leaves)
        epsilon = left / sum(raw[i] * sizes[i] for i in open_leaves)
        full = {i for i in open_leaves if epsilon * raw[i] >= 1}
        if not full:
            for i in open_leaves:
                densities[i] = epsilon * raw[i]
            break
        open_leaves -= full
    return [1 - density for density in densities]
