"""Downstream weights: the weights that multiply the units of a group, and the inputs of them that are each unit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxprune.jaxprs.views import Matrix
from jaxprune.statistics import Moments, Statistics
from jaxprune.surgery.groups import Group, Groups
from jaxprune.surgery.inference.axes import Axis, size_of
from jaxprune.surgery.inference.kept import slices


class Consumer(NamedTuple):
    """One matrix (inputs, outputs) of a parameter; its inputs `inputs[i]` are unit i of a group.

    `inputs` has the shape (units, inputs of a unit): a hidden unit is one input, a head is head_dim inputs, and a
    channel is one input for each position of the convolution's window.
    """

    path: str
    matrix: Matrix
    place: int  # position of the matrix among those of a batched product
    moments: Moments
    inputs: np.ndarray


def consumers_of(groups: Groups, group: Group, stats: Statistics) -> list[Consumer]:
    """The matrices with statistics that sum over the units of a group, each of them separately.

    The list is empty if there is none, if an input belongs to two units, or if units have different numbers of inputs.
    """
    found = []
    for path in dict.fromkeys(member.path for member in group.members):
        if path not in stats:
            continue
        for matrix, moments in zip(stats[path].matrices, stats[path].moments, strict=True):
            labels = _labels(groups.model.axes[path], group, stats[path].shape, matrix)
            if labels is None:
                return []
            for place, of_inputs in enumerate(labels):
                counts = np.bincount(of_inputs[of_inputs >= 0], minlength=group.size)
                if not counts.any():
                    continue
                if counts.min() != counts.max():
                    return []
                order = np.argsort(of_inputs, kind="stable")
                inputs = order[len(of_inputs) - counts.sum() :].reshape(group.size, -1)
                found.append(Consumer(path, matrix, place, moments, inputs))
    return found


def _labels(
    axes: tuple[Axis, ...], group: Group, shape: tuple[int, ...], matrix: Matrix
) -> np.ndarray | None:
    """The unit of each input of each matrix, (groups, inputs), or -1; None if an input belongs to two units."""
    labels = np.full(matrix.shape[:2], -1)
    for dim, axis in enumerate(axes):
        along = np.full(size_of(axis), -1, np.int32)
        for block in slices(axis, np.arange(len(along)), group.atom):
            if (along[block] >= 0).any():
                return None
            along[block] = np.arange(group.size)[:, None]
        if (along < 0).all():
            continue
        entries = np.ascontiguousarray(
            np.broadcast_to(along.reshape([-1 if d == dim else 1 for d in range(len(shape))]), shape)
        )
        of_inputs = matrix._replace(outputs=()).of(entries)[:, :, 0]
        of_outputs = matrix._replace(inputs=()).of(entries)[:, 0, :]
        # Units of the outputs, or of whole matrices (in a depthwise convolution), are not summed over here.
        runs = (of_inputs != of_inputs[:, :1]).any(1) & (of_outputs == of_outputs[:, :1]).all(1)
        if (labels[runs] >= 0).any():
            return None
        labels[runs] = of_inputs[runs]
    return labels
