"""What may be pruned, in which units, and across what the units are ranked."""

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
    """The static choices that make masks: everything except scores and counts.

    Args:
      structure: how weights form units.
      scope: "global" ranks the units of all leaves together, "local" ranks those of each leaf separately.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one. None for the default leaves of the structure, or, if it has none, `prunable(params)`.
      minimum: the minimum number of units that each leaf keeps, or, if in (0, 1), their fraction.

    Raises:
      ValueError: if the scope is unknown or has no meaning for the structure, or `minimum` is not valid.
      TypeError: if the structure is not a structure.

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
          params: pytree of arrays; for lookahead's pair the fast weights are used.
          chosen: positions of the leaves to prune, instead of `where`.

        Raises:
          ValueError, TypeError: if there is nothing to prune, `where` doesn't match, or the structure can't cut
            a leaf.
        """
        weights = weights_of(params)
        leaves = leaves_of(weights)
        if chosen is None and self.where is None:
            chosen = self.structure.default_leaves(leaves)
        if chosen is None:
            chosen = prunable_leaves(weights, self.where, leaves)
        return Units(self, params, leaves, chosen, self.structure.cut(leaves, chosen))
