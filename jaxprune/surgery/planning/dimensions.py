"""Dimensions: the sizes of a full and a small model, for the configuration of a model that is built anew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from jaxprune.patterns import starred_name
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.inference.axes import leaves_of, normal
from jaxprune.surgery.inference.model import KeptAxes
from jaxprune.tables import Row, folded_places, listed, table_text, times


class Factors(NamedTuple):
    """What an axis is made of: sizes whose product is its size, and a number for each that equal axes share."""

    sizes: tuple[int, ...]
    units: tuple[int, ...]


class Dimension(NamedTuple):
    """The size of an axis before and after, as a product: (12, 64) are 12 heads of 64.

    A number of layers is a product of one.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def old(self) -> int:
        """The size in the full model."""
        return math.prod(self.before)

    @property
    def new(self) -> int:
        """The size in the small model."""
        return math.prod(self.after)


@dataclass(frozen=True, eq=False, repr=False)
class Dimensions(Mapping):
    """The sizes of the axes that units may be removed from, and the numbers of layers; it prints as a table.

    It is a mapping from the names in the table's first column; where only some of the layers keep the same number, from
    the names of their axes. `dimensions["layers/*/mlp/up/kernel[1]"]` gives the
    `Dimension` of any axis (`.before`, `.after`, and as whole numbers `.old`, `.new`), with `*` for all layers.

    Attributes:
      axes: "path[axis]" -> its dimension.
      layers: stack of layers -> their number, of stacks that lose layers.
      together: "path[axis]" -> a value that is equal for axes with the same units, which have one row.
    """

    axes: Mapping[str, Dimension]
    layers: Mapping[str, Dimension] = field(default_factory=dict)
    together: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Dimension:
        for known in (self.axes, self.layers):
            if name in known:
                return known[name]
        matches = starred_name(str(name)).fullmatch
        found = {axis: dimension for axis, dimension in self.axes.items() if matches(axis)}
        if not found:
            raise KeyError(f"no dimension {name!r}. There are: {listed([*self.layers, *self.axes], 20)}.")
        if len(set(found.values())) > 1:
            sizes = ", ".join(f"{_text(d.after)} in {axis}" for axis, d in list(found.items())[:5])
            raise KeyError(
                f"{name!r} has no one size: {sizes}{' and so on' if len(found) > 5 else ''}. Plan with `alike` for "
                "layers of one size."
            )
        return next(iter(found.values()))

    def __iter__(self) -> Iterator[str]:
        yield from self.layers
        for row, axes in self._rows():
            matches = starred_name(row.paths[0]).fullmatch
            sizes = {dimension for axis, dimension in self.axes.items() if matches(axis)}
            yield from (row.paths[0],) if len(sizes) == 1 else axes

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _rows(self) -> list[tuple[Row, list[str]]]:
        """The axes with the same units in one row, those of repeated layers too; and the first axis of each layer."""
        of: dict[Any, list[str]] = {}
        for axis in self.axes:
            of.setdefault(self.together.get(axis, axis), []).append(axis)
        rows = [Row(tuple(axes), tuple(map(_text, self.axes[axes[0]]))) for axes in of.values()]
        return [(row, [rows[i].paths[0] for i in places]) for row, places in folded_places(rows, repeats=2)]

    def __str__(self) -> str:
        cells = [(stack, *map(_text, number), "layers") for stack, number in self.layers.items()]
        for row, axes in self._rows():
            name, *others = row.paths
            cells.append((times(name, len(axes)), *row.cells, listed(others, 6)))
        return table_text(("axis", "before", "after", "the same in"), cells, numbers=("before", "after"))

    __repr__ = __str__


def factors_of(groups: Groups) -> dict[str, tuple[Factors | None, ...]]:
    """Path -> for each axis what it is made of, or None where no units can be removed.

    A factor that is a sum (of queries, keys and values in one weight) is one factor.
    """
    free = {group.atom for group in groups}
    number: dict[Any, int] = {}
    out = {}
    for path, axes in groups.model.axes.items():
        found: list[Factors | None] = []
        for axis in axes:
            atoms = normal(axis)
            if any(leaf in free for leaf in leaves_of(axis)):
                units = tuple(number.setdefault(atom, len(number)) for atom in atoms)
                found.append(Factors(tuple(atom.size for atom in atoms), units))
            else:
                found.append(None)
        out[path] = tuple(found)
    return out


def dimensions_of(
    shapes: Mapping[str, tuple[int, ...]],
    kept: KeptAxes,
    factors: Mapping[str, Sequence[Factors | None]] | None,
) -> Dimensions:
    """The dimensions of a plan: of the axes with factors, or where these are not known of those that lose units."""
    axes, together = {}, {}
    for path, shape in shapes.items():
        for dim, (size, mask) in enumerate(zip(shape, kept[path], strict=True)):
            name = f"{path}[{dim}]"
            known = factors[path][dim] if factors is not None else None
            if known is not None:
                left = known.sizes if mask is None else _left(mask.reshape(known.sizes))
                axes[name], together[name] = Dimension(known.sizes, left), known.units
            elif mask is not None and not mask.all():
                axes[name] = Dimension((size,), (int(mask.sum()),))
    return Dimensions(axes, {}, together)


def joined(first: Dimensions, later: Dimensions, small: Mapping[str, tuple[int, ...]]) -> Dimensions:
    """The dimensions of one plan and then another, of the axes that are left.

    Args:
      first, later: their dimensions.
      small: path -> shape of each parameter that both leave.
    """
    axes: dict[str, Dimension] = {}
    for name in [*first.axes, *(name for name in later.axes if name not in first.axes)]:
        if name.rpartition("[")[0] not in small:
            continue
        a, b = first.axes.get(name), later.axes.get(name)
        if a is None or b is None:
            axes[name] = a or later.axes[name]
        elif a.after == b.before:
            axes[name] = Dimension(a.before, b.after)
        else:
            axes[name] = Dimension((a.old,), (b.new,))
    numbers = {**first.layers, **later.layers}
    for stack in first.layers.keys() & later.layers.keys():
        numbers[stack] = Dimension(first.layers[stack].before, later.layers[stack].after)
    together = {
        name: (axes[name], *known)
        for name in axes
        if (known := [of.together[name] for of in (first, later) if name in of.together])
    }
    return Dimensions(axes, numbers, together)


def _left(grid: np.ndarray) -> tuple[int, ...]:
    """How many units of each factor are kept."""
    others = (tuple(j for j in range(grid.ndim) if j != i) for i in range(grid.ndim))
    return tuple(int(grid.any(axis=axes).sum()) for axes in others)


def _text(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "1"
