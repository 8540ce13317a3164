"""Sets of groups that lose the same number of units each, so that one number fits all layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jaxprune.surgery.groups import Group, Groups
from jaxprune.tables import Row, folded_places, listed

Alike = bool | str | Iterable[str | Iterable[str]]


def alike_sets(groups: Groups, alike: Alike, fixed: Mapping[str, float]) -> dict[str, tuple[str, ...]]:
    """Name of each group -> the names of the groups of its set, in order; a group that is in none is its own set.

    Args:
      groups: the groups.
      alike: as for `plan_removal`. Sets that share a group are one set.
      fixed: the share of units that is asked of groups which don't meet the budget.

    Raises:
      ValueError: if a pattern matches no group, or groups of a set have different sizes or shares.
    """
    set_of: dict[str, tuple[str, ...]] = {group.name: (group.name,) for group in groups}
    for what, names in _given(groups, alike):
        together = {name for first in names for name in set_of[first]}
        joined = tuple(group.name for group in groups if group.name in together)
        _check(what, [groups[name] for name in joined], fixed)
        set_of.update(dict.fromkeys(joined, joined))
    return set_of


def checked_alike(alike: Alike) -> Alike:
    """The patterns as nested tuples, which can be read more than once and hashed.

    Raises:
      TypeError: if `alike` is neither a bool nor patterns.
    """
    if isinstance(alike, bool | str):
        return alike
    sets: tuple = (None,)
    if isinstance(alike, Iterable):
        sets = tuple(_named(one) if isinstance(one, str | Group) else _all(one) for one in alike)
    if not all(isinstance(name, str) for one in sets for name in (one if isinstance(one, tuple) else (one,))):
        raise TypeError(
            "`alike` must be True, or names or path patterns of groups (a tuple of several stands for one set), as "
            f"in ('layers/*/up[1]', ('layers/*/q[1]', 'layers/*/v[1]')), got {alike!r}."
        )
    return sets


def _named(one: object) -> object:
    return one.name if isinstance(one, Group) else one


def _all(one: object) -> object:
    return tuple(map(_named, one)) if isinstance(one, Iterable) else one


def _given(groups: Groups, alike: Alike) -> list[tuple[str, list[str]]]:
    """What each set is called in an error, and the names of its groups."""
    alike = checked_alike(alike)
    if isinstance(alike, bool):
        if not alike:
            return []
        names = [group.name for group in groups]
        rows = (Row((g.name, *map(str, g.members)), (str(g.size),)) for g in groups)
        return [
            (f"True ({row.paths[0]})", [names[i] for i in places])
            for row, places in folded_places(rows, repeats=2)
        ]
    sets = (alike,) if isinstance(alike, str) else alike
    return [(repr(one), groups.named(one, "alike")) for one in sets]


def _check(what: str, groups: list[Group], fixed: Mapping[str, float]) -> None:
    of_size: dict[str, list[str]] = {}
    of_share: dict[float | None, list[str]] = {}
    for group in groups:
        of_size.setdefault(str(group.size), []).append(group.name)
        of_share.setdefault(fixed.get(group.name), []).append(group.name)
    if len(of_size) > 1:
        found = "; ".join(f"{size} units in {listed(names)}" for size, names in of_size.items())
        raise ValueError(
            f"`alike` {what} stands for groups of different sizes, which can't keep the same number of units each: "
            f"{found}. Pass one pattern for each size, or alike=True."
        )
    if len(of_share) > 1:
        found = "; ".join(f"{_share(share)} for {listed(names)}" for share, names in of_share.items())
        raise ValueError(
            f"`alike` {what} stands for groups that are asked to lose different numbers of units: {found}. Let "
            "`exclude`, `only` and `overrides` name all of them or none, or leave some out of `alike`."
        )


def _share(share: float | None) -> str:
    return "what the budget asks" if share is None else f"{share:g} (`exclude`, `only` or `overrides`)"
