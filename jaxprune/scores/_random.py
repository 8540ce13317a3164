"""Random scores: the control experiment."""

from __future__ import annotations

import jax
import numpy as np

from jaxprune.draws import uniforms
from jaxprune.params import PyTree, is_float_array


def random(params: PyTree, key: jax.Array) -> PyTree:
    """Uniform random scores in [0, 1): random pruning.

    Args:
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged.
      key: a `jax.random.key`. `imp` and `gradual` pass a fresh key to a score function with a parameter `key`.

    Returns:
      Tree like `params` of float32 scores.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.scores.random({"w": jnp.zeros((2, 3))}, jax.random.key(0))["w"].shape
      (2, 3)
    """
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    scores = list(leaves)
    chosen = [i for i, w in enumerate(leaves) if is_float_array(w)]
    drawn = uniforms(keys[np.array(chosen, int)], [tuple(leaves[i].shape) for i in chosen])
    for i, scores_of_leaf in zip(chosen, drawn, strict=True):
        scores[i] = scores_of_leaf
    return jax.tree.unflatten(treedef, scores)
