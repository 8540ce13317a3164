"""Two plans one after the other: layers and widths, in either order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.inference.kept import composed_mask
from jaxprune.surgery.inference.model import KeptAxes
from jaxprune.surgery.planning.dimensions import Dimensions, joined
from jaxprune.surgery.planning.full_tree import and_measured


class _Plan(Protocol):
    """What a `Plan`, a `LayerPlan` and a `ComposedPlan` have."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    @property
    def kept(self) -> KeptAxes: ...
    @property
    def small_shapes(self) -> dict[str, tuple[int, ...]]: ...
    def dimensions(self) -> Dimensions: ...
    def shrink(self, params: PyTree) -> PyTree: ...
    def masks(self, params: PyTree) -> PyTree: ...
    def compact(self, fn: Callable) -> Callable: ...
    def shrink_opt_state(self, opt_state: PyTree, min_dim_size_to_factor: int = 128) -> PyTree: ...
    def verify(self, fn: Callable, params: PyTree, *inputs: Any) -> Any: ...


class ComposedVerification(NamedTuple):
    """The reports of both plans, the later one's on what the first one left."""

    first: Any
    later: Any

    @property
    def ok(self) -> bool:
        """Whether both are."""
        return self.first.ok and self.later.ok


@dataclass(frozen=True, eq=False)
class ComposedPlan:
    """A plan followed by one for what it leaves; made by `then` of a `Plan` or a `LayerPlan`.

    It is used as they are. To keep it, save both.

    Attributes:
      first: the plan for the full parameters.
      later: the plan for the parameters that `first.shrink` gives.
      measured: how `jp.plan_to` met its target.
    """

    first: _Plan
    later: _Plan
    measured: Any = None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Path -> shape of the full parameter."""
        return self.first.shapes

    @property
    def small_shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of each parameter that is left."""
        return self.later.small_shapes

    @property
    def kept(self) -> KeptAxes:
        """Path -> a mask for each axis of what both plans keep of it."""
        kept = {}
        for path, masks in self.first.kept.items():
            later = self.later.kept.get(path, (None,) * len(masks))
            kept[path] = tuple(composed_mask(a, b) for a, b in zip(masks, later, strict=True))
        return kept

    def dimensions(self) -> Dimensions:
        """The sizes and numbers of layers before and after both plans, as `Plan.dimensions` gives them."""
        return joined(self.first.dimensions(), self.later.dimensions(), self.small_shapes)

    def shrink(self, params: PyTree) -> PyTree:
        """Removes what both plans remove from a tree like the full parameters."""
        return self.later.shrink(self.first.shrink(params))

    def masks(self, params: PyTree) -> PyTree:
        """Both plans as masks on the full parameters, as `Plan.masks` gives them."""
        first = self.first.masks(params)
        later = dict(zip(*flatten_with_paths(self.later.masks(self.first.shrink(params)))[:2], strict=True))
        paths, leaves, treedef = flatten_with_paths(params)
        of_first = treedef.flatten_up_to(first)
        both = [
            _masked(mask, later[path], self.first.kept[path])
            if is_array_leaf(leaf) and path in later
            else mask
            for path, leaf, mask in zip(paths, leaves, of_first, strict=True)
        ]
        return jax.tree.unflatten(treedef, both)

    def compact(self, fn: Callable) -> Callable:
        """The small function of both plans, from the full one."""
        return self.later.compact(self.first.compact(fn))

    def shrink_opt_state(self, opt_state: PyTree, min_dim_size_to_factor: int = 128) -> PyTree:
        """Removes what both plans remove from an optimizer state."""
        small = self.first.shrink_opt_state(opt_state, min_dim_size_to_factor)
        return self.later.shrink_opt_state(small, min_dim_size_to_factor)

    def verify(self, fn: Callable, params: PyTree, *inputs: Any) -> ComposedVerification:
        """Verifies each plan on what it was made for; `report.ok` says whether both are right."""
        first = self.first.verify(fn, params, *inputs)
        return ComposedVerification(
            first, self.later.verify(self.first.compact(fn), self.first.shrink(params), *inputs)
        )

    def then(self, later: Any) -> ComposedPlan:
        """This plan followed by one for the parameters that it leaves."""
        return composed(self, later)

    def __str__(self) -> str:
        return and_measured(f"{self.first}\n\nthen\n\n{self.later}", self.measured)

    __repr__ = __str__


def composed(first: Any, later: Any) -> ComposedPlan:
    """Two plans one after the other.

    Raises:
      ValueError: `later` was made for other parameters than `first` leaves.
    """
    if dict(later.shapes) != first.small_shapes:
        raise ValueError("`later` must be a plan for the small parameters of this plan; its shapes differ.")
    return ComposedPlan(first, later)


def _masked(first: Any, later: Any, kept: tuple[np.ndarray | None, ...]) -> Any:
    """Both masks of a parameter, the later one at the places that the first one keeps."""
    if later is True or np.ndim(later) == 0:
        return first
    mask = np.asarray(later)
    for dim, axis in enumerate(kept):
        if axis is not None and mask.shape[dim] != 1:
            spread = np.zeros((*mask.shape[:dim], len(axis), *mask.shape[dim + 1 :]), bool)
            spread[(slice(None),) * dim + (axis,)] = mask
            mask = spread
    return jnp.asarray(mask & np.asarray(first))
