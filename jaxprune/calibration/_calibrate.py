"""Statistics of the inputs that every weight of a model multiplies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, get_args

from jaxprune.calibration.engine.model import (
    CalibrationModel,
    RowWeights,
    check_row_weights,
    open_model,
    with_progress,
)
from jaxprune.calibration.engine.unseen import warn_of_unseen
from jaxprune.jaxprs.views import Matrix
from jaxprune.params import PyTree
from jaxprune.statistics import Kind, Moments, Statistics, WeightStatistics


def calibrate(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    where: PyTree | None = None,
    moments: Kind = "diagonal",
    row_weights: RowWeights | None = None,
    progress: bool | None = None,
) -> Statistics:
    r"""Computes input statistics of every weight that multiplies activations: $X^T X$ or its diagonal, sums, rows.

    `fn` is traced. A weight is a parameter that reaches a matrix product or a convolution through casts,
    transposes, reshapes and slices, also inside `jit`, `scan` (layer by layer) or `remat`. All batches pass through
    the model together, from one weight to the next, so that only the live activations are in memory.

    Args:
      fn: function of (params, *inputs).
      params: pytree of arrays.
      batches: iterable of batches of the same shape. A batch is a tuple of inputs, or one input.
      where: tree of bools (or a prefix of one, or a function that returns it) that selects the weights;
        None for `prunable(params)`.
      moments: "diagonal" for the diagonal of X^T X, which Wanda and RIA need, "full" for X^T X.
      row_weights: function of the inputs of a batch that returns a weight for each row of activations, such as
        the padding mask (batch, position): rows of weight 0 don't count. If activations have no such
        leading axes (a pooled vector), each row counts once.
      progress: whether to show a progress bar; None for a bar if the standard error is a terminal.

    Returns:
      Dict from the path of a weight to its `WeightStatistics`.

    Raises:
      ValueError: if there is no batch, or batches differ in shape; if a weight of `where` multiplies no activations;
        if the row weights fit no activations; if the inputs of a weight have no row, or are NaN or infinite.
      TypeError: if parameters are tracers.

    Warns:
      UserWarning: if all inputs of a matrix are 0, such as those of an expert that no row reaches. Scores by
        these statistics have no information about the matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> fn = lambda params, x: x @ params["w"]
      >>> batches = [jnp.array([[3.0, 1.0]]), jnp.array([[4.0, 1.0]])]
      >>> stats = jp.calibrate(fn, {"w": jnp.ones((2, 2))}, batches)
      >>> [round(norm, 3) for norm in stats["w"].input_norms[:, 0].tolist()]
      [5.0, 1.414]
    """
    if moments not in get_args(Kind):
        raise ValueError(f"`moments` must be one of {', '.join(map(repr, get_args(Kind)))}, got {moments!r}.")
    model = open_model(fn, params, batches, where, row_weights)
    found: dict[int, dict[Matrix, Moments]] = {}
    fits = False
    for site in with_progress(model.stream(), progress, "calibrate"):
        here, fit = model.moments(site, moments)
        fits = fits or fit
        for use in site.uses:
            of_leaf = found.setdefault(use.leaf, {})
            of_leaf[use.matrix] = of_leaf[use.matrix] + here if use.matrix in of_leaf else here
    if not fits:
        check_row_weights(model.row_weights)
    warn_of_unseen(_unseen_matrices(model, found), "Scores by these statistics are 0 there", stacklevel=2)
    return {
        model.paths[leaf]: WeightStatistics(model.values[leaf].shape, tuple(parts), tuple(parts.values()))
        for leaf, parts in sorted(found.items())
    }


def _unseen_matrices(
    model: CalibrationModel, found: dict[int, dict[Matrix, Moments]]
) -> dict[str, tuple[int, int]]:
    """Path -> number of weights in matrices whose inputs are all 0, and number of all weights."""
    counts = {}
    for leaf, of_leaf in found.items():
        n = sum(
            int(moments.unseen.all(axis=1).sum()) * matrix.shape[1] * matrix.shape[2]
            for matrix, moments in of_leaf.items()
        )
        counts[model.paths[leaf]] = n, model.values[leaf].size
    return counts
