"""Unit masks and axis masks: a mask per leaf atom, and the masks of axes that follow from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxprune.surgery.inference.axes import Atom, Axes, Axis, normal, parts_of, size_of


class Keep:
    """Unit masks of leaf atoms. The mask of an axis is the product of its factors' masks, a sum concatenates them."""

    def __init__(self, masks: Mapping[Atom, np.ndarray] | None = None):
        self.masks: dict[Atom, np.ndarray] = dict(masks or {})

    def size(self, axis: Axis) -> int:
        """Number of kept units of an axis."""
        if not self.masks:
            return size_of(axis)
        total = 1
        for atom in normal(axis):
            if atom.parts is not None:
                total *= sum(self.size(part) for part in parts_of(atom))
            else:
                total *= int(self.masks[atom].sum()) if atom in self.masks else atom.size
        return total

    def mask(self, axis: Axis) -> np.ndarray:
        """Bool array of the axis's full size, True = keep."""
        out = np.ones(1, bool)
        for atom in normal(axis):
            if atom.parts is not None:
                mask = np.concatenate([self.mask(part) for part in parts_of(atom)])
            else:
                mask = self.masks.get(atom)
                if mask is None:
                    mask = np.ones(atom.size, bool)
            out = np.logical_and.outer(out, mask).ravel()
        return out

    def cuts(self, axes: Axes | Sequence[Axis]) -> bool:
        """Whether any unit of any of the axes is removed."""
        return any(self.size(axis) != size_of(axis) for axis in axes)


def small_shape(shape: Sequence[int], masks: Sequence[np.ndarray | None]) -> tuple[int, ...]:
    """The shape that is left of a parameter, of a mask for each axis; None keeps the whole axis."""
    return tuple(n if mask is None else int(mask.sum()) for n, mask in zip(shape, masks, strict=True))


def composed_mask(first: np.ndarray | None, later: np.ndarray | None) -> np.ndarray | None:
    """The mask of an axis that keeps what `first` keeps and `later` keeps of that."""
    if first is None or later is None:
        return later if first is None else first
    out = first.copy()
    out[first] = later
    return out


class Conflict(ValueError):
    """A mask that the axes do not allow."""


def assign(axis: Axis, mask: np.ndarray, masks: dict[Atom, np.ndarray]) -> None:
    """Derives the masks of an axis's leaf atoms from the mask of the axis.

    Raises:
      Conflict: if a unit of a frozen atom is removed, or an atom already has another mask.
    """
    factors = normal(axis)
    grid = mask.reshape([atom.size for atom in factors]) if factors else mask.reshape(())
    for i, atom in enumerate(factors):
        others = tuple(j for j in range(len(factors)) if j != i)
        _assign_atom(atom, np.asarray(grid.any(axis=others)) if others else grid, masks)


def _assign_atom(atom: Atom, mask: np.ndarray, masks: dict[Atom, np.ndarray]) -> None:
    if atom.parts is not None:
        start = 0
        for part in parts_of(atom):
            stop = start + size_of(part)
            assign(part, mask[start:stop], masks)
            start = stop
        return
    if atom.frozen is not None and not mask.all():
        raise Conflict(f"units are removed from an axis that is frozen here: {atom.frozen}")
    known = masks.get(atom)
    if known is None:
        masks[atom] = mask
    elif not np.array_equal(known, mask):
        raise Conflict("two parameters that share an axis here keep different units of it")


def collect(axis: Axis, values: Any, atom: Atom) -> Any:
    """Sums the values of the entries of an axis over each unit of one of its atoms."""
    return sum((block.sum(1) for block in slices(axis, values, atom)), np.zeros(atom.size, values.dtype))


def slices(axis: Axis, values: Any, atom: Atom) -> Iterator[Any]:
    """The entries of an array along its leading axis for each unit of an atom: (atom.size, n) for each occurrence."""
    factors = normal(axis)
    sizes = [*(factor.size for factor in factors), math.prod(values.shape[1:])]
    for i, factor in enumerate(factors):
        others = [j for j in range(len(sizes)) if j != i]
        along = values.reshape(sizes).transpose([i, *others])
        along = along.reshape(factor.size, math.prod(sizes[j] for j in others))
        if factor is atom:
            yield along
        elif factor.parts is not None:
            start = 0
            for part in parts_of(factor):
                stop = start + size_of(part)
                yield from slices(part, along[start:stop], atom)
                start = stop
