"""Masks of kept units that are known only when the function runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxprune.surgery.inference.axes import Atom, Axes, Axis, leaves_of, normal, parts_of, size_of
from jaxprune.surgery.inference.kept import Keep


class TracedKeep(Keep):
    """Unit masks of leaf atoms that may be traced: each atom with a mask counts as cut, and no size changes."""

    def __init__(self, masks: Mapping[Atom, Any]):
        super().__init__()
        self.traced = dict(masks)

    def size(self, axis: Axis) -> int:
        return size_of(axis)

    def mask(self, axis: Axis) -> Any:
        """Bool array of the axis's full size, True = keep."""
        mask = jnp.ones(1, bool)
        for atom in normal(axis):
            if atom.parts is not None:
                of_atom = jnp.concatenate([self.mask(part) for part in parts_of(atom)])
            else:
                of_atom = self.traced.get(atom)
                if of_atom is None:
                    of_atom = jnp.ones(atom.size, bool)
            mask = of_atom if mask.size == 1 else (mask[:, None] & of_atom).reshape(-1)
        return mask

    def cuts(self, axes: Axes | Sequence[Axis]) -> bool:
        return any(leaf in self.traced for axis in axes for leaf in leaves_of(axis))
