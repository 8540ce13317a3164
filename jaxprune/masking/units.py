"""The units of one tree of parameters: how many there are, how many are pruned, and the resulting masks."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxprune.allocation import (
    Scope,
    check_fraction,
    check_least_kept,
    counts_to_prune,
    least_kept,
    shares_of,
)
from jaxprune.lookahead import paired, weights_of
from jaxprune.masking import program
from jaxprune.meshes import placed_like, vary_over, varying_axes
from jaxprune.params import PyTree, aligned, is_kept_whole, mask_leaves
from jaxprune.structures.structure import Cut
from jaxprune.tree_nodes import Leaf

if TYPE_CHECKING:
    from jaxprune.masking.criterion import Criterion


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The units of a tree under a `Criterion`; made by `criterion.units(params)`.

    Scores, masks and shares may be trees like the parameters. If the parameters are lookahead's pair, they may
    also be trees like its weights.

    Attributes:
      criterion: the criterion that made it.
      params: the tree.
      leaves: its leaves with their paths; for lookahead's pair the fast weights.
      chosen: positions of the leaves to prune.
      cut: how those leaves are cut into arrays of units.
    """

    criterion: Criterion
    params: PyTree
    leaves: list[Leaf]
    chosen: list[int]
    cut: Cut

    @functools.cached_property
    def numbers(self) -> list[int]:
        """Number of units in each array of units."""
        return [math.prod(shape) for shape in self.cut.shapes]

    @functools.cached_property
    def least(self) -> list[int]:
        """`least[a]` is the minimum number of units that array a keeps."""
        least = least_kept(self.criterion.minimum, self.numbers)
        return [max(pair) for pair in zip(least, self.cut.least, strict=True)] if self.cut.least else least

    @property
    def paths(self) -> list[str]:
        """Paths of the chosen leaves."""
        return [self.leaves[i].path for i in self.chosen]

    # How many are pruned.

    def shares(self, sparsity: Any) -> Any:
        """A sparsity as one share, or as a list with one for each array of units.

        Where units lie across leaves, an allocation may also be a mapping from the names of groups to shares.

        Raises:
          ValueError, TypeError: if a known share is outside [0, 1), or a tree does not match.
        """
        if self._is_by_name(sparsity):
            return self.each(sparsity, "sparsity")
        shares = shares_of(sparsity, weights_of(self.params), self.chosen)
        return self.cut.shares(shares) if isinstance(shares, list) else shares

    def each(self, tree: PyTree, argument: str) -> list[Any]:
        """The number for each array of units, from a tree (or a prefix of one) with a number for each leaf."""
        if self._is_by_name(tree):
            for name in self.cut.names:
                check_fraction(argument, tree[name], name)
            return [tree[name] for name in self.cut.names]
        values = aligned(weights_of(self.params), tree, argument)
        return self.cut.shares([values[i] for i in self.chosen])

    def _is_by_name(self, tree: Any) -> bool:
        """Whether a tree names the arrays of units, which are not leaves."""
        names = self.cut.names
        return isinstance(tree, Mapping) and {*tree} == {*names} and list(names) != self.paths

    def counts(self, shares: Any) -> Any:
        """Number of units to prune: one count for all, or a list with one for each array of units.

        Of a structure with a budget of its own: how much of it to remove.
        """
        if self.cut.budget is not None:
            return self.cut.budget.counts(shares, self.criterion.scope, self.least)
        return counts_to_prune(shares, self.numbers, self.criterion.scope)

    def check_final(self, shares: Any) -> None:
        """Raises ValueError for known shares that the structure or the minimum does not allow."""
        names, structure = self.cut.names, self.criterion.structure
        each = shares if isinstance(shares, list) else [shares] * len(names)
        for share, name in zip(each, names, strict=True):
            structure.check_sparsity(share, name)
        # A structure that fixes the sparsity has it in every leaf, whatever the scope.
        self.check_minimum(shares, self.criterion.scope if structure.fixed_sparsity is None else "local")

    def check_minimum(self, shares: Any, scope: Scope | None = None) -> None:
        """Raises ValueError for known shares that prune more units than the minimum allows."""
        if self.cut.budget is not None:
            self.cut.budget.check(shares, scope or self.criterion.scope, self.least)
        elif any(self.least):
            counts = counts_to_prune(shares, self.numbers, scope or self.criterion.scope)
            check_least_kept(counts, self.numbers, self.least, list(self.cut.names))

    # Which.

    def masks(self, scores: PyTree, counts: Any, prior: PyTree | None = None) -> PyTree:
        """Masks that prune `counts` units: those that `prior` has pruned, then those with the lowest scores.

        Args:
          scores: tree like the parameters, larger = keep.
          counts: as returned by `counts`; may be traced.
          prior: masks whose pruned units remain pruned.

        Returns:
          Tree like the parameters: bool arrays, and the plain `True` for leaves that are not pruned.
        """
        return self._masks(scores, counts, prior, check=False)[0]

    def masks_and_flags(
        self, scores: PyTree, counts: Any, prior: PyTree | None = None
    ) -> tuple[PyTree, list[jax.Array]]:
        """`masks`, and for each chosen leaf whether none of its scores is NaN or -inf."""
        return self._masks(scores, counts, prior, check=True)

    def _masks(
        self, scores: PyTree, counts: Any, prior: PyTree | None, check: bool
    ) -> tuple[PyTree, list[jax.Array]]:
        weights = weights_of(self.params)
        found = self.of_scores(scores)
        held = [True] * len(found) if prior is None else mask_leaves(weights, weights_of(prior), "prior")
        held = [True if is_kept_whole(mask) else mask for mask in held]
        masks, fine = program.keep_masks(
            self.cut,
            [found[i] for i in self.chosen],
            counts,
            [None if held[i] is True else held[i] for i in self.chosen],
            self.least,
            check,
        )
        return self.tree(masks, held), fine

    def of_scores(self, scores: PyTree) -> list[Any]:
        """The leaves of scores; for lookahead's pair those of the fast weights.

        Raises:
          ValueError: another number of leaves than the parameters have.
        """
        found = jax.tree.leaves(weights_of(scores))
        if len(found) != len(self.leaves):
            raise ValueError(
                f"`score` must return a tree like the parameters, got {len(found)} leaves for {len(self.leaves)}."
            )
        return found

    def next_masks(self, scores: PyTree, counts: Any, masks: PyTree) -> PyTree:
        """The masks after `masks`, whose pruned units remain pruned: arrays in their tree, as a loop carries them."""
        return as_arrays(self.masks(scores, counts, masks), masks)

    def full_masks(self) -> PyTree:
        """Masks that keep all units, in the shapes of `masks`; each is a new array with the sharding of its leaf."""
        weights = [self.leaves[i].value for i in self.chosen]
        masks = program.nothing_pruned(self.cut, weights)
        whole = [jnp.array(True) for _ in self.leaves]
        # Inside `shard_map` they vary over the axes over which the weights do, as later masks will.
        placed = [vary_over(placed_like(m, w), varying_axes(w)) for m, w in zip(masks, weights, strict=True)]
        return self.tree(placed, whole)

    # What masks say of units.

    def pruned(self, masks: PyTree) -> list[jax.Array]:
        """For each array of units, which units have no weight left under these masks."""
        held = mask_leaves(weights_of(self.params), weights_of(masks))
        return program.pruned_units(
            self.cut, [None if is_kept_whole(held[i]) else held[i] for i in self.chosen]
        )

    def at_chosen(self, tree: PyTree) -> list[Any]:
        """The chosen leaves of a tree like the parameters; for lookahead's pair those of the fast weights."""
        leaves = jax.tree.leaves(weights_of(tree))
        return [leaves[i] for i in self.chosen]

    def tree(self, masks: list[Any], others: list[Any] | None = None) -> PyTree:
        """A tree like the parameters with these masks at the chosen leaves and the plain `True` elsewhere."""
        leaves = [True] * len(self.leaves) if others is None else list(others)
        for i, mask in zip(self.chosen, masks, strict=True):
            leaves[i] = mask
        tree = jax.tree.unflatten(jax.tree.structure(weights_of(self.params)), leaves)
        return paired(tree, self.params)


def as_arrays(masks: PyTree, like: PyTree) -> PyTree:
    """Masks as a loop carries them: arrays throughout, in the tree of `like`."""
    return jax.tree.unflatten(
        jax.tree.structure(like), [jnp.asarray(mask) for mask in jax.tree.leaves(masks)]
    )
