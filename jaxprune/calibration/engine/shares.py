"""Shares: the sparsity of each weight that multiplies activations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxprune.allocate._exact import share_of_count
from jaxprune.allocation import shares_of
from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.jaxprs.program import Use
from jaxprune.jaxprs.rows import ConvRows
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves
from jaxprune.selection import count_to_prune
from jaxprune.structures.matrix import MatrixStructure

_OF_KERNELS = 8  # a network is convolutional if every eighth matrix is a kernel with overlapping windows


def shares_of_leaves(
    model: CalibrationModel, params: PyTree, sparsity: Any, structure: MatrixStructure, where: PyTree | None
) -> tuple[dict[int, float], bool]:
    """The sparsity of each leaf that multiplies activations, and whether the leaves were named one by one."""
    if sparsity is None:
        sparsity = 0.5 if structure.fixed_sparsity is None else structure.fixed_sparsity
    paths, _, _ = flatten_with_paths(params)
    chosen = prunable_leaves(params, where)
    shares = shares_of(sparsity, params, chosen)
    named = where is not None or isinstance(shares, list)
    if (
        not isinstance(shares, list)
        and structure.fixed_sparsity is None
        and is_convolutional(model.program.uses)
    ):
        return shares_by_magnitude(model, float(shares)), named
    shares = [float(s) for s in (shares if isinstance(shares, list) else [shares] * len(chosen))]
    for i, share in zip(chosen, shares, strict=True):
        structure.check_sparsity(share, paths[i])
    by_path = dict(zip([paths[i] for i in chosen], shares, strict=True))
    return {use.leaf: by_path[model.paths[use.leaf]] for use in model.program.uses}, named


def is_convolutional(uses: Iterable[Use]) -> bool:
    """Whether the weights are those of a convolutional network: at least an eighth of them are kernels.

    Kernels of one position, and those whose windows do not overlap (the patches of a vision transformer), are matrices
    like all others. The two convolutions before an encoder of speech do not make it a convolutional network.
    """
    kernels = {(use.leaf, use.matrix): _overlaps(use) for use in uses}
    return any(kernels.values()) and _OF_KERNELS * sum(kernels.values()) >= len(kernels)


def targets_by_default(uses: Iterable[Use], is_full: bool) -> float:
    """How far targets move to the dense model if nobody says it, given whether the method needs X^T X in full."""
    return 0.5 if is_full and is_convolutional(uses) else 0.0


def _overlaps(use: Use) -> bool:
    if not isinstance(use.rows, ConvRows):
        return False
    axes = zip(use.rows.window, use.rows.strides, use.rows.rhs_dilation, strict=True)
    return any(k > 1 and (k - 1) * dilation + 1 > stride for k, stride, dilation in axes)


def shares_by_magnitude(model: CalibrationModel, sparsity: float) -> dict[int, float]:
    r"""Leaf -> its sparsity, by one threshold for the layer-adaptive magnitude of all weights.

    With the weights of a leaf sorted by size, the score is $w_i^2 / \sum_{j \ge i} w_j^2$: the error of a weight
    relative to what is kept with it. `round(sparsity * n)` of the n weights have the lowest scores; `jp.scores.lamp`
    are these scores.

    References:
      Lee, Park, Mo, Ahn, Shin, Layer-adaptive sparsity for the Magnitude-based Pruning, 2020, arXiv:2010.07611.
    """
    scores = {leaf: _scores(np.asarray(model.values[leaf])) for leaf in sorted(_leaves(model))}
    every = np.concatenate(list(scores.values()))
    left = int(count_to_prune(sparsity, every.size))
    if not left:
        return dict.fromkeys(scores, 0.0)
    threshold = np.partition(every, left - 1)[left - 1]
    counts = {leaf: int(np.searchsorted(mine, threshold, "left")) for leaf, mine in scores.items()}
    left -= sum(counts.values())
    for leaf, mine in scores.items():  # those at the threshold, in the order of leaves
        tied = min(int(np.searchsorted(mine, threshold, "right")) - counts[leaf], left)
        counts[leaf] += tied
        left -= tied
    return {leaf: share_of_count(counts[leaf], mine.size) for leaf, mine in scores.items()}


def _leaves(model: CalibrationModel) -> set[int]:
    return {use.leaf for use in model.program.uses}


def _scores(weight: np.ndarray) -> np.ndarray:
    """The scores in ascending order; NaN and infinite weights are reported elsewhere, and have the score 1."""
    sizes = np.sort(np.abs(weight.astype(np.float32)), axis=None)
    with np.errstate(all="ignore"):
        squares = np.square((sizes / sizes[-1]).astype(np.float64))
        kept = np.cumsum(squares[::-1])[::-1]
        scores = np.nan_to_num(squares / kept, nan=0.0 if sizes[-1] == 0 else 1.0)
    return scores.astype(np.float32)
