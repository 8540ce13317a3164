"""Control experiments: masks of the same counts at random positions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.deprecated import key_was_first
from jaxprune.draws import uniforms
from jaxprune.masking.program import pruned_units
from jaxprune.params import PyTree
from jaxprune.structures import Structure, Unstructured
from jaxprune.structures.structure import Cut
from jaxprune.tree_nodes import leaves_of


@key_was_first
def shuffle_masks(masks: PyTree, structure: Structure = Unstructured(), *, key: jax.Array) -> PyTree:
    """Prunes the same number of units of each leaf, at random positions.

    This is the control for the question whether it matters which weights of a layer are kept: only the number
    of pruned units of each layer remains.

    Args:
      masks: tree of bool arrays; scalars remain as they are.
      structure: the structure that the masks were made with; its units are shuffled. With `Coupled` the masks must
        have the shapes of the parameters.
      key: a `jax.random.key`.

    Returns:
      Tree like `masks`.

    Raises:
      ValueError: if the structure can't cut a mask.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> masks = {"w": jnp.arange(12).reshape(3, 4) < 5, "bias": True}
      >>> shuffled = jp.shuffle_masks(masks, key=jax.random.key(0))
      >>> int(shuffled["w"].sum()), shuffled["bias"]
      (5, True)

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635 (random sparsity).
      Su et al., Sanity-Checking Pruning Methods: Random Tickets can Win the Jackpot, 2020, arXiv:2009.11094.
    """
    leaves = leaves_of(masks)
    chosen = [i for i, leaf in enumerate(leaves) if jnp.ndim(leaf.value)]
    if not chosen:
        return masks
    cut = structure.cut(leaves, chosen)
    keys = jax.random.split(key, len(cut.shapes))
    shuffled = _shuffled(cut, keys, [leaves[i].value for i in chosen])
    new: list[Any] = [leaf.value for leaf in leaves]
    for i, mask in zip(chosen, shuffled, strict=True):
        new[i] = mask
    return jax.tree.unflatten(jax.tree.structure(masks), new)


@functools.partial(jax.jit, static_argnames="cut")
def _shuffled(cut: Cut, keys: jax.Array, masks: list[jax.Array]) -> list[jax.Array]:
    counts = [jnp.sum(pruned, dtype=jnp.int32) for pruned in pruned_units(cut, masks)]
    drawn = uniforms(keys, cut.shapes)
    return cut.masks(cut.select(drawn, counts, [None] * len(drawn)))
