"""What may be pruned, in which units, and over what they are compared."""

from __future__ import annotations

import dataclasses

from jaxprune.allocation import Scope, check_minimum, check_scope
from jaxprune.lookahead import weights_of
from jaxprune.masking.units import Units
from jaxprune.params import PyTree, Where, prunable_leaves
from jaxprune.structures import Structure, Unstructured
from jaxprune.tree_nodes import leaves_of


@dataclasses.dataclass(frozen=True)
class Criterion:
    """The static choices behind masks: everything but scores and counts.

    Args:
      structure: what a unit is.
      scope: "global" compares the units of all leaves, "local" those of each leaf.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function that gives it; None for those
        that the structure names, or else `prunable(params)`.
      minimum: units that each leaf keeps at least: a whole number, or a share in (0, 1).

    Raises:
      ValueError: an unknown scope, or one that has no meaning for the structure; a minimum that is none.
      TypeError: a structure that is none.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.masking import Criterion
      >>> units = Criterion(scope="local").units({"w": jnp.array([[3.0, 1.0, 2.0, 4.0]])})
      >>> units.masks({"w": jnp.array([[3.0, 1.0, 2.0, 4.0]])}, units.counts(0.25))
      {'w': Array([[ True, False,  True,  True]], dtype=bool)}
    """

    structure: Structure = Unstructured()
    scope: Scope = "global"
    where: Where = None
    minimum: int | float = 0

    def __post_init__(self):
        check_scope(self.scope, self.structure)
        check_minimum(self.minimum)

    def units(self, params: PyTree, chosen: list[int] | None = None) -> Units:
        """The units of a tree of parameters (or of their shapes, or their scores).

        Args:
          params: pytree of arrays; of lookahead's pair the fast weights count.
          chosen: positions of the leaves to prune, instead of `where`.

        Raises:
          ValueError, TypeError: nothing to prune, a `where` that doesn't match, a leaf that the structure can't
            cut.
        """
        weights = weights_of(params)
        leaves = leaves_of(weights)
        if chosen is None and self.where is None:
            chosen = self.structure.default_leaves(leaves)
        if chosen is None:
            chosen = prunable_leaves(weights, self.where, leaves)
        return Units(self, params, leaves, chosen, self.structure.cut(leaves, chosen))
