"""Training states shrunk by a plan: parameters, optimizer state, statistics, averages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxprune.opt_state import owners
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery import ComposedPlan
from jaxprune.surgery.layers.removed_leaves import without_leaves
from jaxprune.surgery.planning.optimizer import shrink_opt_state

Variables = Callable[[Any], PyTree]


def parts_of(plan: Any) -> list[Any]:
    """The plans of widths or of layers that a plan is composed of, in their order."""
    if isinstance(plan, ComposedPlan):
        return [*parts_of(plan.first), *parts_of(plan.later)]
    return [plan]


def shrink_state(plan: Any, state: Any, variables: Variables) -> Any:
    """A state for the small parameters.

    The leaves that `variables(state)` consists of are shrunk as the parameters of the plan. Of the others, those
    in trees like `state.params` (moments, averages) are.

    Args:
      plan: a plan for `variables(state)`.
      state: pytree with `.params` and `.opt_state`.
      variables: state -> the parameters of the function.
    """
    for part in parts_of(plan):
        state = _by_part(part, state, variables)
    return state


def shrink_snapshot(plan: Any, snapshot: PyTree, state: Any, variables: Variables) -> PyTree:
    """What an `Initialization` remembers, for the small parameters: a state, or parts of one.

    Args:
      plan, variables: as for `shrink_state`.
      snapshot: the memory.
      state: the state before it is shrunk.
    """
    if all(hasattr(snapshot, field) for field in ("params", "opt_state")):
        return shrink_state(plan, snapshot, variables)
    for part in parts_of(plan):
        snapshot = without_leaves(*_shrink_rest(part, snapshot, _trained(part, state, variables)))
        state = _by_part(part, state, variables)
    return snapshot


def places_of(state: Any, variables: Variables) -> dict[str, int]:
    """Path of each parameter of the function -> its position in `jax.tree.leaves(state)`.

    Raises:
      ValueError: if `variables` does not merely pick and arrange leaves of the state.
    """
    leaves, treedef = jax.tree.flatten(state)
    try:
        tree = variables(jax.tree.unflatten(treedef, map(_Place, range(len(leaves)))))
    except Exception as error:  # the user's function
        raise ValueError(
            f"`variables` must pick and arrange leaves of the state, without computing with them "
            f"({type(error).__name__}: {error})."
        ) from error
    paths, places, _ = flatten_with_paths(tree)
    for path, place in zip(paths, places, strict=True):
        if not isinstance(place, _Place) or places.count(place) > 1:
            raise ValueError(
                "`variables` must pick and arrange leaves of the state, each once, without computing with them; it "
                f"does not at {path!r}."
            )
    return {path: place.number for path, place in zip(paths, places, strict=True)}


@dataclasses.dataclass(frozen=True)
class _Place:
    """The position of a leaf, with which nothing can be computed."""

    number: int


def _by_part(part: Any, state: Any, variables: Variables) -> Any:
    places, by_place = places_of(state, variables), set(places_of(state, variables).values())
    leaves, treedef = jax.tree.flatten(state)
    # Scalars are left as they are, so that the rest is shrunk beside the parameters' places.
    rest = jax.tree.unflatten(
        treedef, [np.zeros(()) if i in by_place else leaf for i, leaf in enumerate(leaves)]
    )
    rest, gone = _shrink_rest(part, rest, _trained(part, state, variables))
    new = jax.tree.leaves(rest)
    small = part.shrink(variables(state))
    for path, leaf in zip(*flatten_with_paths(small)[:2], strict=True):
        new[places[path]] = leaf
    removed = getattr(part, "gone", ())
    gone |= {place for path, place in places.items() if path in removed}
    return without_leaves(jax.tree.unflatten(treedef, new), gone)


def _trained(part: Any, state: Any, variables: Variables) -> list[str]:
    """The paths of the plan that are in `state.params`, in the plan's order."""
    treedef = jax.tree.structure(state)
    numbered = jax.tree.unflatten(treedef, range(treedef.num_leaves))
    trained, places = set(jax.tree.leaves(numbered.params)), places_of(state, variables)
    return [path for path in part.shapes if places.get(path) in trained]


def _shrink_rest(part: Any, tree: PyTree, paths: list[str]) -> tuple[PyTree, set[int]]:
    """Trees like the parameters inside of another tree shrunk, and which leaves belong to removed parameters."""
    small = shrink_opt_state(tree, {path: part.shapes[path] for path in paths}, part.kept)
    removed = getattr(part, "gone", ())
    if not removed:
        return small, set()
    found = owners(small, paths)
    return small, {i for i, owner in enumerate(found) if owner is not None and owner.path in removed}
