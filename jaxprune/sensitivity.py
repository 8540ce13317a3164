"""Sensitivity: what pruning one layer at a time does to the loss."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.params import PyTree
from jaxprune.scores import magnitude
from jaxprune.structures import Structure, Unstructured

SPARSITIES = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclasses.dataclass(frozen=True, eq=False)
class Sensitivity:
    """Loss with one layer pruned; made by `sensitivity`, or read with `Sensitivity.load`. Printing it shows a table.

    Attributes:
      paths: the layers (leaves that may be pruned), in order.
      sparsities: the grid, rising, in (0, 1).
      losses: float64 array (layers, sparsities): the loss with that layer alone at that sparsity.
      dense: the loss with nothing pruned.
      units: units of each layer (weights, if unstructured).
      weights: weights of each layer.
      others: paths of the leaves that are not pruned.
    """

    paths: tuple[str, ...]
    sparsities: tuple[float, ...]
    losses: np.ndarray = dataclasses.field(repr=False)
    dense: float
    units: tuple[int, ...]
    weights: tuple[int, ...]
    others: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The table as JSON text."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """The table from what `to_json` gave."""
        raise NotImplementedError

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json()` to a file."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Reads what `save` wrote."""
        raise NotImplementedError


def sensitivity(
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    batch: Any,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    score: Callable[[PyTree], PyTree] = magnitude,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
) -> Sensitivity:
    """The loss with each layer alone pruned to each sparsity.

    Args:
      loss_fn: (params, batch) -> scalar.
      params: pytree of arrays: the trained network.
      batch: what the loss is measured on: data that the network was not trained on.
      sparsities: grid of shares of a layer's units, each in (0, 1).
      score: params -> scores, larger = keep.
      structure, where: as for `make_masks`.

    Returns:
      A `Sensitivity`, for `jp.allocate.from_sensitivity` and `jaxprune.plots.plot_sensitivity`.

    Raises:
      ValueError: as `make_masks` does; a grid outside (0, 1); a loss that is no scalar.
    """
    raise NotImplementedError
