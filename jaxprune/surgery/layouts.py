"""Where the units of groups lie along the axes of parameters, in a form that is hashable and holds no arrays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune.host import namespace
from jaxprune.surgery.inference.axes import Atom, Axis, normal, parts_of, size_of


class Factor(NamedTuple):
    """A factor of an axis: the units of a group, a sum of parts, or neither.

    size: its length; group: number of the group whose units it counts; parts: the layouts of its parts.
    """

    size: int
    group: int | None = None
    parts: tuple[Layout, ...] = ()


Layout = tuple[Factor, ...]  # of an axis: a row-major product


def layout_of(axis: Axis, numbers: Mapping[Atom, int]) -> Layout:
    """The layout of an axis in which the atoms of groups have these numbers."""
    return tuple(
        Factor(atom.size, numbers.get(atom))
        if atom.parts is None
        else Factor(atom.size, None, tuple(layout_of(part, numbers) for part in parts_of(atom)))
        for atom in normal(axis)
    )


def groups_in(layout: Layout) -> Iterator[int]:
    """The groups of a layout, each as often as it occurs."""
    for factor in layout:
        if factor.group is not None:
            yield factor.group
        for part in factor.parts:
            yield from groups_in(part)


def by_unit(layout: Layout, values: Any) -> Iterator[tuple[int, Any]]:
    """What an array holds along its leading axis for each unit: (group, array of shape (units, n)) a place."""
    sizes = [*(factor.size for factor in layout), math.prod(values.shape[1:])]
    for i, factor in enumerate(layout):
        if factor.group is None and not factor.parts:
            continue
        others = [j for j in range(len(sizes)) if j != i]
        along = values.reshape(sizes).transpose([i, *others])
        along = along.reshape(factor.size, math.prod(sizes[j] for j in others))
        if factor.group is not None:
            yield factor.group, along
        start = 0
        for part in factor.parts:
            stop = start + math.prod(f.size for f in part)
            yield from by_unit(part, along[start:stop])
            start = stop


def spread_units(layout: Layout, kept: Sequence[Any]) -> Any:
    """The mask of an axis from those of the groups, by number; of numbers for units, their products."""
    first = next(kept[group] for group in groups_in(layout))
    return _spread(layout, kept, namespace(first), first.dtype)


def _spread(layout: Layout, kept: Sequence[Any], module: Any, dtype: Any) -> Any:
    mask = module.ones(1, dtype)
    for factor in layout:
        if factor.group is not None:
            of_factor = kept[factor.group]
        elif factor.parts:
            of_factor = module.concatenate([_spread(part, kept, module, dtype) for part in factor.parts])
        else:
            of_factor = module.ones(factor.size, dtype)
        mask = (mask[:, None] * of_factor).reshape(-1)
    return mask


def matched(axis: Axis, layout: Layout) -> Iterator[tuple[Atom, int]] | None:
    """The atoms of an axis that hold the units of groups, where the axis has this layout; else None."""
    found = list(_matched(axis, layout))
    return None if None in found else iter(found)  # type: ignore[return-value]


def _matched(axis: Axis, layout: Layout) -> Iterator[tuple[Atom, int] | None]:
    if size_of(axis) != math.prod(factor.size for factor in layout):
        yield None
    elif any(factor.group is not None or factor.parts for factor in layout):
        factors = normal(axis)
        if tuple(atom.size for atom in factors) != tuple(factor.size for factor in layout):
            yield None
            return
        for atom, factor in zip(factors, layout, strict=True):
            if factor.group is not None:
                yield (atom, factor.group) if atom.parts is None and atom.frozen is None else None
            elif factor.parts:
                parts = parts_of(atom) if atom.parts is not None else []
                if len(parts) != len(factor.parts):
                    yield None
                    return
                for part, inner in zip(parts, factor.parts, strict=True):
                    yield from _matched(part, inner)
