"""The leaves that gradients train: float arrays that are no statistics of activations."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.healing.arrays import is_array
from jaxprune.healing.running_statistics import statistics_of
from jaxprune.params import PyTree, Where, aligned, is_float_array, resolved
from jaxprune.tree_nodes import leaves_of


class Trained(NamedTuple):
    """A tree as what is trained and the rest.

    flags: for each leaf, whether it is trained; leaves: all leaves; treedef: of the tree.
    """

    flags: list[bool]
    leaves: list[Any]
    treedef: Any

    def part(self, leaves: list[Any]) -> PyTree:
        """A tree like the parameters that has None in the place of leaves that are not trained."""
        pairs = zip(self.flags, leaves, strict=True)
        return jax.tree.unflatten(self.treedef, [leaf if flag else None for flag, leaf in pairs])

    def copies(self) -> PyTree:
        """The trained part, in float32 at least: updates smaller than bfloat16's steps would be lost."""
        return self.part(
            [
                jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32)) if flag else leaf
                for flag, leaf in zip(self.flags, self.leaves, strict=True)
            ]
        )

    def rest(self) -> list[Any]:
        """The arrays that are not trained."""
        pairs = zip(self.flags, self.leaves, strict=True)
        return [leaf for flag, leaf in pairs if not flag and is_array(leaf)]

    def whole(self, part: PyTree, rest: list[Any]) -> PyTree:
        """The tree of a trained part, in the parameters' own dtypes, and of the other arrays."""
        new, same = iter(jax.tree.leaves(part)), iter(rest)
        leaves = [
            next(new).astype(leaf.dtype) if flag else next(same) if is_array(leaf) else leaf
            for flag, leaf in zip(self.flags, self.leaves, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def trained(params: PyTree, where: Where) -> Trained:
    """What is trained of parameters: the float arrays that `where` selects, without statistics."""
    leaves, treedef = jax.tree.flatten(params)
    flags: list[Any] = [True] * len(leaves)
    if where is not None:
        flags = aligned(params, resolved(params, where, "where"), "where")
    statistics = {place for stat in statistics_of(params) for place in stat.places}
    chosen = []
    for i, (leaf, flag) in enumerate(zip(leaves_of(params), flags, strict=True)):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"`where` must hold Python bools, got {flag!r} at {leaf.path!r}.")
        chosen.append(bool(flag) and is_float_array(leaf.value) and i not in statistics)
    if not any(chosen):
        raise ValueError(
            f"there is nothing to train: none of the {len(leaves)} leaves is a float array that `where` selects "
            "and no statistic."
        )
    return Trained(chosen, leaves, treedef)
