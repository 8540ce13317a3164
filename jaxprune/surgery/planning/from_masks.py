"""A plan from masks: the units whose slices are all masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.params import PyTree, flatten_with_paths, is_kept_whole
from jaxprune.surgery.coupled import check_member
from jaxprune.surgery.coupled_units import CoupledUnits, coupled_units, kept_along
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.layouts import by_unit
from jaxprune.surgery.planning.plan import Plan
from jaxprune.surgery.planning.removal import check_chosen, plan_units


def plan_from_masks(groups: Groups, masks: PyTree) -> Plan:
    """The plan that removes the units which masks prune.

    A unit is removed when all its slices are masked. Masks that `make_masks`, `gradual` or `imp` give with
    `structure=jp.Coupled(groups)` have no others, and neither have those of `plan.masks`.

    Args:
      groups: what `find_groups` found.
      masks: tree like the parameters of bool arrays that broadcast to them (True = keep), and scalar True where
        nothing is pruned. It may lack statistics (Linen's `batch_stats`): they lose the same units.

    Returns:
      The plan.

    Raises:
      ValueError: a unit that is masked in part, or another weight that is masked alone (group and path are
        named); a group that loses all its units, or keeps fewer than a router chooses; a tree that is not the
        parameters'; traced masks.
      TypeError: a mask that is not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[3.0, 1.0, 2.0]]), "down": jnp.array([[1.0], [1.0], [9.0]])}
      >>> fn = lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"]
      >>> groups = jp.find_groups(fn, params, jnp.ones((1, 1)))
      >>> masks = jp.make_masks(jp.scores.magnitude(params), 0.3, structure=jp.Coupled(groups))
      >>> jp.plan_from_masks(groups, masks).small_shapes
      {'down': (2, 1), 'up': (1, 2)}
    """
    given = _checked(groups, masks)
    cut = coupled_units(groups, range(len(groups)), given)
    if not any(mask is not None for mask in given.values()):
        return plan_units(groups, {})
    found = cut.pruned(list(given.values()))
    kept = [
        np.ones(group.size, bool) if units is None else ~np.broadcast_to(units, (group.size,))
        for group, units in zip(groups, found, strict=True)
    ]
    for group, units in zip(groups, kept, strict=True):
        if not units.any():
            raise ValueError(
                f"`masks` prune all {group.size} units of group {group.name!r}: a group must keep one. Make them "
                "with structure=jp.Coupled(groups), which keeps `minimum` units of each."
            )
        check_chosen(group, units, "masks")
    expected = cut.masks(kept)
    for (path, mask), wanted in zip(given.items(), expected, strict=True):
        if mask is not None:
            _check_leaf(groups, cut, given, kept, path, mask, wanted)
    names = zip(groups, kept, strict=True)
    return plan_units(groups, {group.name: units for group, units in names if not units.all()})


def _checked(groups: Groups, masks: PyTree) -> dict[str, np.ndarray | None]:
    """Path -> mask that broadcasts to the parameter, None where it is kept whole."""
    paths, leaves, _ = flatten_with_paths(masks)
    by_path = dict(zip(paths, leaves, strict=True))
    unknown = [path for path in by_path if path not in groups.model.axes and not _is_whole(by_path[path])]
    if unknown:
        raise ValueError(
            f"`masks` is not of the parameters that the groups were found in: it has {unknown[0]!r} besides."
        )
    given: dict[str, np.ndarray | None] = {}
    for path, aval in zip(groups.model.traced.paths, groups.model.traced.avals, strict=True):
        if path not in by_path:
            check_member(groups, path, None, "masks")
            continue
        mask, shape = by_path[path], tuple(aval.shape)
        if isinstance(mask, jax.core.Tracer):
            raise ValueError(
                f"`masks` must be known numbers for a plan, got a traced array at {path!r}: call it outside of jit."
            )
        if _is_whole(mask):
            given[path] = None
            continue
        if not isinstance(mask, bool) and getattr(mask, "dtype", None) != np.dtype(bool):
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise TypeError(f"`masks` must hold bool arrays (True = keep), got {kind} at {path!r}.")
        array = np.asarray(mask)
        if array.ndim not in (0, len(shape)) or any(
            m not in (1, n) for m, n in zip(array.shape, shape, strict=False)
        ):
            raise ValueError(
                f"`masks` must broadcast to the parameters, got shape {array.shape} at {path!r} of shape {shape}."
            )
        given[path] = None if array.all() else array
    return given


def _is_whole(mask: Any) -> bool:
    return (not hasattr(mask, "dtype") and not isinstance(mask, bool)) or is_kept_whole(mask)


def _check_leaf(
    groups: Groups,
    cut: CoupledUnits,
    given: dict[str, np.ndarray | None],
    kept: Sequence[np.ndarray],
    path: str,
    mask: np.ndarray,
    wanted: np.ndarray,
) -> None:
    """Raises ValueError where a mask is not what the removed units make of it."""
    shape = np.broadcast_shapes(mask.shape, wanted.shape)
    differ = np.broadcast_to(mask, shape) != np.broadcast_to(wanted, shape)
    if not differ.any():
        return
    layouts = cut.layouts[list(given).index(path)]
    for axis, layout in enumerate(layouts):
        if not layout:
            continue
        for number, slices in by_unit(layout, kept_along(mask, axis, layout)):
            lost = np.flatnonzero(~slices.any(1) & kept[number])
            if len(lost):
                group = groups.groups[number]
                other = _where_kept(cut, given, number, int(lost[0]), path)
                raise ValueError(
                    f"`masks` prune unit {lost[0]} of group {group.name!r} in part: all of it at {path!r}, but not "
                    f"at {other!r}. A unit is removed with all its slices: make the masks with "
                    "structure=jp.Coupled(groups)."
                )
    first = tuple(map(int, np.argwhere(differ)[0]))
    touching = dict.fromkeys(group.name for axis in range(len(layouts)) for group in groups.of(path, axis))
    raise ValueError(
        f"`masks` prune weights at {path!r} (such as {first}) without the rest of a unit; "
        + (f"the groups there are {', '.join(map(repr, touching))}" if touching else "no group touches it")
        + ". Make the masks with structure=jp.Coupled(groups)."
    )


def _where_kept(
    cut: CoupledUnits, given: dict[str, np.ndarray | None], number: int, unit: int, path: str
) -> str:
    """The first leaf that keeps a weight of a unit."""
    for (other, mask), layouts in zip(given.items(), cut.layouts, strict=True):
        for axis, layout in enumerate(layouts):
            if not layout or other == path:
                continue
            column = kept_along(np.array(True) if mask is None else mask, axis, layout)
            if any(group == number and slices[unit].any() for group, slices in by_unit(layout, column)):
                return other
    return path
