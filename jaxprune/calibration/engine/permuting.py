"""Units in another order before a pattern prunes them: the order by what the calibration batches say of the inputs."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import numpy as np

from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.jaxprs.views import Matrix
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.statistics import Moments, WeightStatistics
from jaxprune.statistics.moments import moments_of
from jaxprune.structures.matrix import MatrixStructure

_EVERY = 4  # norms of inputs need fewer rows than X^T X: every fourth batch


class Orders(Protocol):
    """Orders of units: `jp.surgery.Orders`."""

    def apply(self, tree: PyTree) -> PyTree: ...


class Reorderable(Protocol):
    """Groups of units that may be reordered: what `jp.find_groups` returns."""

    def find_orders(
        self, params: PyTree, n: int, m: int, *, scores: PyTree | None = None, where: Any = None
    ) -> Orders: ...


def found_orders(
    groups: Reorderable, model: CalibrationModel, params: PyTree, structure: MatrixStructure, where: Any
) -> Orders:
    """The orders in which the pattern loses least of each layer's output, by the inputs of the dense model.

    The score of a weight is its part of the squared output, w^2 ||X_i||^2, over their sum in its matrix.

    Raises:
      ValueError: if the structure is no N:M pattern.
      TypeError: if `groups` has no orders.
    """
    units = structure.matrix_units()
    if units.kept is None:
        raise ValueError(
            f"`permute` reorders inputs for a pattern NM(n, m), got the structure {units.label}, whose masks do not "
            "depend on their order. Leave `permute` out."
        )
    if not hasattr(groups, "find_orders"):
        raise TypeError(
            f"`permute` must be what jp.find_groups(fn, params, *inputs) returns, got {type(groups).__name__}."
        )
    found: dict[int, dict[Matrix, Moments]] = {}
    some = slice(None, None, _EVERY)
    model = model._replace(batches=model.batches[some], row_weights=model.row_weights[some])
    for site in model.stream():
        here, _ = moments_of(site.activations, site.uses[0].rows, "diagonal", model.row_weights)
        for use in site.uses:
            of_leaf = found.setdefault(use.leaf, {})
            of_leaf[use.matrix] = of_leaf[use.matrix] + here if use.matrix in of_leaf else here
    scores = {
        model.paths[leaf]: _parts(np.asarray(model.values[leaf]), of_leaf) for leaf, of_leaf in found.items()
    }
    paths, leaves, treedef = flatten_with_paths(params)
    nothing = [np.broadcast_to(np.float32(np.nan), np.shape(leaf)) for leaf in leaves]
    new = [scores.get(path, none) for path, none in zip(paths, nothing, strict=True)]
    tree = jax.tree.unflatten(treedef, new)
    return groups.find_orders(params, units.kept, units.inputs, scores=tree, where=where)


def _parts(weight: np.ndarray, moments: dict[Matrix, Moments]) -> np.ndarray:
    """The part of each weight in the squared output of its matrix; 0 for inputs that the batches do not reach."""
    stats = WeightStatistics(weight.shape, tuple(moments), tuple(moments.values()))
    values = []
    for matrix, of_inputs in moments.items():
        w = np.abs(matrix.of(weight).astype(np.float32))
        part = np.nan_to_num(w * np.asarray(of_inputs.norms)[:, :, None])  # the pass that prunes reports NaN
        largest = part.max(initial=0)
        part = np.square(part / (largest if largest > 0 else 1))
        values.append(part / max(part.sum(dtype=np.float64), 1e-30))
    return stats.spread(values).astype(np.float32)
