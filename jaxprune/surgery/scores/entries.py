"""Sums of the numbers of all entries of a unit: from one number per weight to one per unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.groups import Group, Groups
from jaxprune.surgery.inference.kept import collect
from jaxprune.surgery.slicing import on_host


def arrays_of(groups: Groups, params: PyTree) -> dict[str, Any]:
    """The parameters that were analysed, by path.

    Raises:
      ValueError: if a path is missing, or an array has another shape than the analysed parameter.
    """
    paths, leaves, _ = flatten_with_paths(params)
    arrays = {path: leaf for path, leaf in zip(paths, leaves, strict=True) if is_array_leaf(leaf)}
    for path, aval in zip(groups.model.traced.paths, groups.model.traced.avals, strict=True):
        if path not in arrays:
            raise ValueError(f"`params` is not the tree that the groups were found with: it lacks {path!r}.")
        if np.shape(arrays[path]) != aval.shape:
            raise ValueError(
                f"`params` must have the shapes that the groups were found with: {aval.shape} at {path!r}, "
                f"got {np.shape(arrays[path])}."
            )
    return arrays


def places_of(group: Group) -> list[tuple[str, int]]:
    """The parameter axes that have units of a group, each of them once."""
    return list(dict.fromkeys((member.path, member.axis) for member in group.members))


def summed_over_units(
    groups: Groups, values: Mapping[str, Any], factors: Mapping[str, float] | None = None
) -> dict[str, np.ndarray]:
    """Sums the values of all entries of each unit's member slices.

    Args:
      groups: the groups that `find_groups` returned.
      values: path -> array of the parameter's shape, or one that broadcasts to it; a parameter that is not
        named contributes 0.
      factors: path -> factor that the sums of this parameter are multiplied by, in float64.

    Returns:
      Group name -> float64 array of shape (group.size,).
    """
    shapes = {
        path: aval.shape
        for path, aval in zip(groups.model.traced.paths, groups.model.traced.avals, strict=True)
    }
    sums: dict[tuple[str, int], np.ndarray] = {}
    out = {}
    for group in groups:
        total = np.zeros(group.size)
        for path, axis in places_of(group):
            if path in values:
                if (path, axis) not in sums:
                    factor = 1.0 if factors is None else factors[path]
                    sums[path, axis] = factor * _sums(path, values[path], shapes[path], axis)
                total += collect(groups.model.axes[path][axis], sums[path, axis], group.atom)
        out[group.name] = total
    return out


def _sums(path: str, values: Any, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Sums over all axes but one; if the array is on other devices, only the sums are fetched."""
    module: Any = np if isinstance(values, np.ndarray) or on_host(values) else jnp
    try:
        values = module.broadcast_to(module.asarray(values, np.float32), shape)
    except ValueError:
        raise ValueError(
            f"scores must broadcast to their parameters, got shape {np.shape(values)} at {path!r} "
            f"of shape {shape}."
        ) from None
    return np.asarray(module.sum(values, axis=tuple(d for d in range(len(shape)) if d != axis)), np.float64)
