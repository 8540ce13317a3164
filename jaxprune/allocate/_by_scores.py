"""Allocation by one threshold over all scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.allocate._exact import known_share, share_of_count
from jaxprune.masking import Criterion, make_masks
from jaxprune.params import PyTree
from jaxprune.structures import Structure, Unstructured


def from_scores(
    scores: PyTree,
    sparsity: float,
    where: PyTree | None = None,
    structure: Structure = Unstructured(),
    minimum: int | float = 0,
) -> PyTree:
    r"""The fraction of each leaf that lies below one threshold over all scores.

    \(s_l = \frac{1}{n_l} \sum_i [q_i \le t]\) for the units of leaf l with scores q; t is chosen such that
    `round(sparsity * n)` of all units lie below it. `make_masks(scores, sparsity, scope="global")` prunes exactly
    those units. The allocation is for methods that choose the weights within a layer themselves, such as
    `reconstruct`. The scores of different leaves must be comparable: Fisher and Taylor scores, which are changes
    of the loss, are; magnitudes and Wanda scores of different layers are not.

    Args:
      scores: pytree of scores, larger = keep.
      sparsity: fraction of all units to prune, in [0, 1).
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(scores)`.
      structure: how weights form units, but not `NM`, which fixes the sparsity of every leaf.
      minimum: minimum number of units that every leaf keeps, as in `make_masks`.

    Returns:
      Tree like `scores` of floats for `make_masks` and `reconstruct`, 0.0 for leaves that are not pruned.

    Raises:
      ValueError: if scores are traced, and as `make_masks` does.
      TypeError: if the structure is an `NM`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> scores = {"first": jnp.array([[1.0, 2.0, 3.0, 9.0]]), "last": jnp.array([[4.0, 7.0, 8.0, 9.0]])}
      >>> jp.allocate.from_scores(scores, 0.5)
      {'first': 0.75, 'last': 0.25}

    References:
      LeCun, Denker, Solla, Optimal Brain Damage, 1990 (one threshold over all saliencies).
    """
    sparsity = known_share(sparsity)
    criterion = Criterion(structure, where=where)
    if structure.fixed_sparsity is not None:
        raise TypeError(f"`structure` {structure!r} prunes every leaf alike: there is nothing to allocate.")
    leaves, treedef = jax.tree.flatten(scores)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        raise ValueError(
            "`scores` must be known numbers, got traced arrays: call `from_scores` outside of jit."
        )
    masks = make_masks(scores, sparsity, "global", structure, where, minimum=minimum)
    units = criterion.units(scores)
    shares = [0.0] * len(leaves)
    for i, pruned in zip(units.chosen, units.pruned(masks), strict=True):
        shares[i] = share_of_count(int(jnp.sum(pruned)), pruned.size)
    return jax.tree.unflatten(treedef, shares)
