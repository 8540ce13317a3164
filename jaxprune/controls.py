"""Controls: what a mask is compared with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree


def shuffle_masks(key: jax.Array, masks: PyTree) -> PyTree:
    """The same number of kept units in each leaf, at random places.

    The control for "does it matter which weights of a layer are kept": only the counts of each layer stay.
    Masks of units (channels) are shuffled as units. Masks whose units are larger than an entry (blocks, N:M
    groups) lose that pattern.

    Args:
      key: a `jax.random.key`.
      masks: tree of bool arrays; scalars stay as they are.

    Returns:
      Tree like `masks`.

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
    leaves, treedef = jax.tree.flatten(masks)
    keys = jax.random.split(key, max(len(leaves), 1))
    shuffled = [
        jax.random.permutation(k, mask.ravel()).reshape(mask.shape) if jnp.ndim(mask) else mask
        for k, mask in zip(keys, leaves, strict=False)
    ]
    return jax.tree.unflatten(treedef, shuffled)
