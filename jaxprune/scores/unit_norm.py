"""A norm of each unit, spread over its weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, flatten_with_paths, is_float_array
from jaxprune.structures import Structure


def unit_norm(
    params: PyTree, structure: Structure, power: Callable[[jax.Array], jax.Array], root: Callable
) -> PyTree:
    """`root(sum of power(w) over the unit)` for each unit, at every weight of the unit."""
    paths, leaves, treedef = flatten_with_paths(params)

    def norm(path: str, w: jax.Array) -> jax.Array:
        # A leaf that this structure cannot cut is scored weight by weight: whether it may be pruned at all
        # is for `make_masks` to say, which knows `where`.
        try:
            structure.check(path, w.shape)
        except ValueError:
            return root(power(w.astype(jnp.float32)))
        total = structure.unit_scores(power(w.astype(jnp.float32))) * structure.unit_sizes(w.shape)
        return jnp.broadcast_to(structure.expand(root(total), w.shape), w.shape)

    scores = [
        norm(path, w) if is_float_array(w) and w.ndim else w for path, w in zip(paths, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, scores)
