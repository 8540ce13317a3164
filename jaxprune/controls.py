"""Controls: what a mask is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.structures import Structure, Unstructured
from jaxprune.units import masks_from_counts, pruned_units


def shuffle_masks(key: jax.Array, masks: PyTree, structure: Structure = Unstructured()) -> PyTree:
    """The same number of pruned units in each leaf, at random places.

    The control for "does it matter which weights of a layer are kept": only the counts of each layer stay.

    Args:
      key: a `jax.random.key`.
      masks: tree of bool arrays; scalars stay as they are.
      structure: what the masks were made with; its units are what is shuffled.

    Returns:
      Tree like `masks`.

    Raises:
      ValueError: a mask that the structure can't cut.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> masks = {"w": jnp.arange(12).reshape(3, 4) < 5, "bias": True}
      >>> shuffled = jp.shuffle_masks(jax.random.key(0), masks)
      >>> int(shuffled["w"].sum()), shuffled["bias"]
      (5, True)

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635 (random sparsity).
      Su et al., Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot, 2020, arXiv:2009.11094.
    """
    paths, leaves, treedef = flatten_with_paths(masks)
    chosen = [i for i, mask in enumerate(leaves) if jnp.ndim(mask)]
    scores, counts = list(leaves), []
    for i, leaf_key in zip(chosen, jax.random.split(key, max(len(chosen), 1)), strict=False):
        shape = leaves[i].shape
        structure.check(paths[i], shape)
        drawn = jax.random.uniform(leaf_key, structure.unit_shape(shape))
        scores[i] = jnp.broadcast_to(structure.expand(drawn, shape), shape)
        counts.append(jnp.sum(pruned_units(structure, leaves[i], shape), dtype=jnp.int32))
    made = masks_from_counts(jax.tree.unflatten(treedef, scores), counts, structure, chosen, None)
    shuffled = jax.tree.leaves(made)
    return jax.tree.unflatten(treedef, [new if i in chosen else leaves[i] for i, new in enumerate(shuffled)])
