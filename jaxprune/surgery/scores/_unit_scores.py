"""Scores of units, and the trees and functions that can be given instead of them."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, ValuesView
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, aligned, flatten_with_paths
from jaxprune.surgery.groups import Group, Groups
from jaxprune.surgery.scores.entries import summed_over_units
from jaxprune.tables import table_text


@dataclass(frozen=True, eq=False)
class UnitScores:
    """A score for every unit of some groups, larger = keep; a mapping from the groups' names to arrays.

    Printing it shows a table. Two `UnitScores` are equal if their names and arrays are equal; they can also be
    compared with a plain dict.

    Attributes:
      by_group: group name -> array of shape (group.size,).
    """

    by_group: Mapping[str, Any]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_group)

    def __len__(self) -> int:
        return len(self.by_group)

    def __contains__(self, name: object) -> bool:
        return name in self.by_group

    def __getitem__(self, name: str | Group) -> Any:
        try:
            return self.by_group[name]  # type: ignore[index]  # a group has the hash of its name
        except KeyError:
            known = ", ".join(repr(str(known)) for known in self)
            name = name.name if isinstance(name, Group) else name
            raise KeyError(f"no scores of group {name!r}. There are scores of: {known}.") from None

    def get(self, name: str | Group, default: Any = None) -> Any:
        """The scores of a group, or `default`."""
        return self.by_group.get(name, default)  # type: ignore[arg-type]

    def keys(self) -> KeysView[str]:
        """The names of the groups."""
        return self.by_group.keys()

    def values(self) -> ValuesView[Any]:
        """The arrays."""
        return self.by_group.values()

    def items(self) -> ItemsView[str, Any]:
        """Names and arrays."""
        return self.by_group.items()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(np.array_equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]  # like any mapping that holds arrays

    def __str__(self) -> str:
        rows = []
        for name, scores in self.items():
            if isinstance(scores, jax.core.Tracer):
                shown = (str(scores.shape[0]), *["traced"] * 3)
            else:
                known = np.asarray(scores, np.float64)
                shown = (
                    str(len(known)),
                    *(f"{f(known):.4g}" if len(known) else "-" for f in _SHOWN.values()),
                )
            rows.append((name, *shown))
        columns = ("group", "units", *_SHOWN)
        return table_text(columns, rows, numbers=columns[1:])

    __repr__ = __str__


_SHOWN: dict[str, Callable[[np.ndarray], Any]] = {"lowest": np.min, "median": np.median, "highest": np.max}

Mapping.register(UnitScores)  # type: ignore[attr-defined]

Score = UnitScores | PyTree | Callable[[PyTree], Any]


def unit_scores(groups: Groups, params: PyTree, score: Score) -> UnitScores:
    r"""Sums scores of weights over each unit: \( s_i = \sum_{w \in \text{unit } i} s_w \).

    Args:
      groups: the groups that `find_groups` returned.
      params: the parameters that were analysed.
      score: tree like `params` of scores that broadcast to the parameters (larger = keep; None leaves do not
        count), or `UnitScores`, or a function of `params` that returns one of the two. A callable module with
        the structure of `params` counts as a tree.

    Returns:
      For each group a float64 array of shape (group.size,). If `score` is `UnitScores`, these are the groups that
      it names.

    Raises:
      ValueError: if the tree is not like `params`, if no group has a name in `UnitScores`, or if an array has the
        wrong shape or values that are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[3.0], [5.0]])}
      >>> groups = jp.find_groups(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 1)))
      >>> jp.surgery.unit_scores(groups, params, params)["down[0]"]
      array([4., 7.])
      >>> jp.surgery.unit_scores(groups, params, {"up": params["up"], "down": None})["down[0]"]
      array([1., 2.])
    """
    if isinstance(score, UnitScores):
        return _checked(groups, score.by_group)
    leaves = _leaves_like(params, score)
    if leaves is None:
        score = score(params)
        if isinstance(score, UnitScores):
            return _checked(groups, score.by_group)
        leaves = aligned(params, score, "score") if callable(score) else _leaves_like(params, score)
    analysed = set(groups.model.traced.paths)
    values = {}
    for path, value in zip(flatten_with_paths(params)[0], leaves or (), strict=True):
        if value is None or path not in analysed:
            continue
        if not is_array_leaf(value):
            raise ValueError(f"`score` must hold arrays or None, got {type(value).__name__} at {path!r}.")
        values[path] = value
    return _checked(groups, summed_over_units(groups, values))


def _leaves_like(params: PyTree, score: Any) -> list[Any] | None:
    """The leaves of a score tree, some of which may be None; returns None if `score` is a function."""
    if callable(score) and jax.tree_util.treedef_is_leaf(jax.tree.structure(score)):
        return None
    try:
        return jax.tree.structure(params).flatten_up_to(score)
    except ValueError:
        return None if callable(score) else aligned(params, score, "score")


def _checked(groups: Groups, by_group: Mapping[str, Any]) -> UnitScores:
    sizes = {group.name: group.size for group in groups}
    out = {}
    for name, scores in by_group.items():
        if name not in sizes:
            raise ValueError(
                f"`score` names {name!r}, which is not a group. There are: {', '.join(map(repr, sizes))}."
            )
        out[name] = np.asarray(scores, np.float64)
        if out[name].shape != (sizes[name],):
            raise ValueError(
                f"`score` must have shape ({sizes[name]},) for group {name!r}, got {out[name].shape}."
            )
        if not np.isfinite(out[name]).all():
            raise ValueError(f"`score` has values that are not finite for group {name!r}.")
    return UnitScores(out)
