"""One-shot pruning: every layer is pruned on the outputs of the pruned layers before it."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxprune.calibration.engine.activation_statistics import ActivationStatistics
from jaxprune.calibration.engine.cost import cost_of
from jaxprune.calibration.engine.fingerprint import fingerprint
from jaxprune.calibration.engine.finished import store_result, stored_result
from jaxprune.calibration.engine.fitting import check_structure, fits, misfit
from jaxprune.calibration.engine.interleaved import windows_on_the_way
from jaxprune.calibration.engine.journal import Journal, Record
from jaxprune.calibration.engine.layers import LayerWeights, by_method
from jaxprune.calibration.engine.model import CalibrationModel, RowWeights, open_model
from jaxprune.calibration.engine.parts import Part, counts_of, parts_of
from jaxprune.calibration.engine.permuting import Reorderable, found_orders
from jaxprune.calibration.engine.results import OnLayer
from jaxprune.calibration.engine.sending import send_through
from jaxprune.calibration.engine.shares import shares_of_leaves, targets_by_default
from jaxprune.calibration.engine.unseen import unseen_when_dense, warn_of_unseen_leaves
from jaxprune.calibration.methods import Method, Refinement, Refit, SparseGPT
from jaxprune.params import PyTree, aligned, flatten_with_paths
from jaxprune.structures import Structure, Unstructured
from jaxprune.structures.matrix import MatrixStructure

_THEN = "They are pruned by magnitude, and the kept ones keep their values"  # weights that no row reaches


def reconstruct(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    sparsity: Any = None,
    structure: Structure = Unstructured(),
    method: Method = SparseGPT(),
    *,
    refine: Sequence[Refinement | Refit] = (),
    fisher: PyTree | None = None,
    dense_targets: float | None = None,
    statistics: bool = True,
    where: PyTree | None = None,
    permute: Reorderable | None = None,
    row_weights: RowWeights | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_layer: OnLayer | None = None,
    progress: bool | None = None,
) -> tuple[PyTree, PyTree]:
    r"""Prunes a model without training it, from calibration batches, in one pass through the model.

    The model is pruned layer by layer. For each layer $X^T X$ is computed from the outputs of the pruned layers
    before it, `method` solves $\min \|X W - X W_0\|_F$ over sparse $W$, and the pass continues with the pruned
    weight. Weights of the same inputs share one factorization. A weight that is used at several places is pruned
    at the first of them, on its inputs at all of these places in the dense model. Weights whose inputs are 0 in
    every row, such as those of an expert that no row reaches, are pruned by magnitude to the requested sparsity;
    the kept ones among them keep their values.

    Args:
      fn: function of (params, *inputs).
      params: pytree of arrays.
      batches: iterable of batches of the same shape. A batch is a tuple of inputs, or one input.
      sparsity: fraction of the units to prune, in [0, 1): a float, or a tree like `params` (an allocation). A float is
        the fraction of each weight, but in a convolutional network that of all weights together: layers have shares
        of it by their weights' sizes (LAMP); `jp.allocate.uniform(params, sparsity)` gives equal shares. A network is
        convolutional if kernels of overlapping windows are at least an eighth of its matrices. None for 0.5, or with
        N:M for the sparsity of the pattern. N:M takes no other sparsity, except 0 in a tree: such a weight remains
        dense.
      structure: `Unstructured()`, `NM(n, m)`, whose groups run along the inputs as traced from the model,
        or `Block((inputs, outputs))`.
      method: `SparseGPT()`, `ADMM()`, or `MaskOnly(score)`.
      refine: refinements that are applied to each layer after `method`, such as `(Swaps(), LeastSquares())`. A
        `Refit(...)` at the end trains each residual branch as soon as it is pruned, with biases and norms; the pass
        continues with the trained branch.
      fisher: tree like `params` of scores from `jp.scores.fisher`. With it, errors of output o are weighted by
        $d_o = \sum_i fisher_{io} / \sum_i w_{io}^2 \|X_i\|^2$, how sensitive the loss is to them, and
        $\sum_o d_o \|X w_o - X w_{0,o}\|^2$ is minimized. It determines which outputs of a weight keep more of
        their weights; `jp.allocate.from_scores(fisher, sparsity)` does the same among the weights of a model. With
        N:M it has no effect. None weights all outputs equally.
      dense_targets: how far, from 0 to 1, the target of a layer moves to its output in the dense model, on the
        inputs from the dense layers. At 1 the layer solves $\min \|X W - X_{dense} W_0\|$: it compensates all errors
        of the layers before it, and may fit their noise if there are few rows. If the product is added to a
        residual stream, the target is the dense sum. A value above 0 needs a second pass. None for 0.5 in a
        convolutional network, whose images have many rows, and 0 otherwise (also for `MaskOnly`, whose weights keep
        their values).
      statistics: whether means and variances that are parameters, such as BatchNorm's in inference, follow the
        pruned weights before them: each normalized channel keeps the mean and the variance over the batches that it
        has in the dense model. Those that several places share remain as they are. It needs a second pass if there
        are such parameters.
      where: tree of bools (or a prefix of one, or a function that returns it) that selects the weights to prune;
        None for `prunable(params)`.
      permute: groups of `jp.find_groups(fn, params, *inputs)`, for N:M: their units are first reordered as `jp.permute`
        does, so that the pattern loses least of the layers' outputs in the dense model (scores $w^2 \|X_i\|^2$, as a
        part of their sum in each matrix). It takes one more pass of every fourth batch. Parameters and masks are
        returned in the new order, in which `fn` is the same function; an optimizer state or another tree from before
        does not fit it.
      row_weights: function of the inputs of a batch that returns the weights of the rows, such as the padding mask.
      checkpoint: a folder for the results of layers and windows, so that a run that was stopped goes on: called again
        with the same arguments, it takes what is finished from there, after forward passes only. The result has the
        same bits as that of a run that was not stopped, on the same machine. A finished run returns its result at
        once. The folder takes as much space as the pruned weights, with Refit twice as much. None stores nothing.
      on_layer: function that is called with a `LayerResult` for each weight, and a `WindowResult` for each
        window of `Refit`; a `jp.LayerLog()` makes a table of them. The errors in it need X^T X, whereas
        `MaskOnly` alone needs only its diagonal.
      progress: whether to show a progress bar; None for a bar if the standard error is a terminal.
        Above it stands what the run will take (see `calibration_cost`), below it what it took.

    Returns:
      (params, masks): pruned weights are exactly zero, and statistics have new values. Masks are bool arrays,
      True = keep, or the scalar True for a leaf without pruned weights.

    Raises:
      ValueError: if `calibrate` would raise one; if a sparsity is outside [0, 1), or differs from the pattern's
        with N:M; if `dense_targets` is outside [0, 1]; if `fn` multiplies by only a part of a weight, or by
        slices of it that overlap; if N:M does not fit a weight that `where` or a tree of sparsities names; if N:M
        fits no weight; if `permute` is given without N:M; if `checkpoint` is the folder of a run with another
        function, other parameters, batches or settings (the message says which).
      TypeError: if the structure is of another kind; if parameters are tracers; if `permute` is not groups.

    Warns:
      UserWarning: if no `where` is given, and weights multiply no activations, or N:M does not fit them (the three
        channels of an image): they remain dense. If weights have inputs that are 0 in every row.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> batches = [jax.random.normal(jax.random.key(1), (32, 8))]
      >>> pruned, masks = jp.reconstruct(lambda params, x: x @ params["w"], params, batches, 0.5)
      >>> jp.sparsity(pruned, masks)
      0.5

    References:
      Frantar, Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023,
      arXiv:2301.00774.
      Li et al., GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration, 2025,
      arXiv:2504.02692, and Arai, Ichikawa, Quantization Error Propagation: Revisiting Layer-Wise Post-Training
      Quantization, 2025, arXiv:2504.09629 (targets from the dense model, in full and in part).
      Lee et al., Layer-adaptive sparsity for the Magnitude-based Pruning, 2020, arXiv:2010.07611 (shares of layers).
      Pool, Yu, Channel Permutations for N:M Sparsity, 2021 (NeurIPS).
      van der Ouderaa et al., The LLM Surgeon, 2023, arXiv:2312.17244 (Fisher information as the product of what
      the inputs and what the outputs say; here the outputs' part is a diagonal).
    """
    if dense_targets is not None and not 0 <= dense_targets <= 1:
        raise ValueError(f"`dense_targets` must be in [0, 1], got {dense_targets!r}.")
    cutting = check_structure(structure)
    refine, refit = _split(refine)
    model = open_model(fn, params, batches, where, row_weights)
    if model.lost:
        warnings.warn(
            f"{len(model.lost)} weights multiply no activations in `fn` and remain dense: {model.lost[0]!r}"
            f"{', ...' if len(model.lost) > 1 else ''}. If this is intended, leave them out of `where`.",
            stacklevel=2,
        )
    if dense_targets is None:
        dense_targets = targets_by_default(model.program.uses, method.moments == "full")
    shares, named = shares_of_leaves(model, params, sparsity, cutting, where)
    units = cutting.matrix_units()
    if units.kept is not None:
        model, uncut = _without_uncut(model, cutting, shares, named)
        if uncut:
            warnings.warn(
                f"{units.label}: `m` does not divide the inputs of {len(uncut)} weights, which "
                f"remain dense: {', '.join(map(repr, uncut))}. If this is intended, leave them out of `where`.",
                stacklevel=2,
            )
    method.check(cutting)
    counts = counts_of(parts_of(model), shares, cutting)
    is_full = method.moments == "full" or refine or dense_targets or on_layer is not None
    kind = "full" if is_full else "diagonal"
    given, journal = params, None
    if checkpoint is not None:
        settings = {
            "structure": structure,
            "method": method,
            "refine": (*refine, refit),
            "dense_targets": float(dense_targets),
            "statistics": bool(statistics),
            "on_layer": f"with {kind} X^T X",  # other sums, so other bits
        }
        journal = _journal(checkpoint, model, counts, fisher, permute, settings)
        finished = journal.result()
        if finished is not None:
            return _finished(finished, model, params, on_layer)
    if permute is not None:
        orders = found_orders(permute, model, params, cutting, where)
        params, fisher = orders.apply(params), None if fisher is None else orders.apply(fisher)
        model = model.with_values(params)
    layers = LayerWeights(model, cutting, counts, _fisher_scores(model, params, fisher))
    start = by_method(method, counts, cutting)
    windows = None
    if refit is not None:
        windows = windows_on_the_way(model, params, layers, refit, dense_targets)
    follow = ActivationStatistics(model) if statistics else None
    told = functools.partial(
        cost_of, model, cutting, method, refine, refit, dense_targets, statistics, kind == "full"
    )
    send_through(
        layers, start, refine, dense_targets, on_layer, progress, kind, follow, windows, journal, told
    )
    unseen = unseen_when_dense(model, layers.unseen)
    warn_of_unseen_leaves(model, unseen, _THEN, stacklevel=2)
    params, masks = layers.result(params)
    params = params if follow is None else follow.inserted(params)
    if journal is not None:
        store_result(journal, given, params, masks, unseen)
    return params, masks


def _journal(
    checkpoint: str | os.PathLike[str],
    model: CalibrationModel,
    counts: dict[Part, np.ndarray],
    fisher: PyTree | None,
    permute: Reorderable | None,
    settings: dict[str, Any],
) -> Journal:
    """The journal of a run with these settings."""
    more = {
        "sparsity": [(*use[:2], counts.get(use[:2])) for use in model.program.uses],
        "fisher": None if fisher is None else flatten_with_paths(fisher)[:2],
        "permute": None if permute is None else str(permute),
    }
    return Journal(checkpoint, fingerprint(model, settings | more))


def _finished(
    record: Record, model: CalibrationModel, params: PyTree, on_layer: OnLayer | None
) -> tuple[PyTree, PyTree]:
    """The result of a run that was finished before, told as it was then."""
    params, masks, unseen = stored_result(record, params)
    if on_layer is not None:
        for row in record.rows:
            on_layer(row)
    warn_of_unseen_leaves(model, unseen, _THEN, stacklevel=3)
    return params, masks


def _split(refine: Sequence[Refinement | Refit]) -> tuple[list[Refinement], Refit | None]:
    """The refinements of single weights, and the one of windows after them."""
    single = [each for each in refine if not isinstance(each, Refit)]
    refits = [each for each in refine if isinstance(each, Refit)]
    if len(refits) > 1 or (refits and refine[-1] is not refits[0]):
        raise ValueError(f"`refine` takes one `Refit`, as its last item, got {tuple(refine)!r}.")
    return single, refits[0] if refits else None


def _fisher_scores(
    model: CalibrationModel, params: PyTree, fisher: PyTree | None
) -> dict[int, np.ndarray] | None:
    if fisher is None:
        return None
    paths, leaves, _ = flatten_with_paths(params)
    found = dict(zip(paths, zip(leaves, aligned(params, fisher, "fisher"), strict=True), strict=True))
    scores = {}
    for leaf in {use.leaf for use in model.program.uses}:
        path = model.paths[leaf]
        weight, score = found[path]
        score = np.asarray(score).astype(np.float64)
        if score.shape != np.shape(weight) or not (np.isfinite(score) & (score >= 0)).all():
            raise ValueError(
                f"`fisher` must have finite scores of at least 0 in the shape of each weight, got others at "
                f"{path!r} (shape {score.shape} for {np.shape(weight)}). Compute them with `jp.scores.fisher`."
            )
        # Only their ratios count, so they are scaled such that they and their sums fit float32.
        scores[leaf] = (score / max(score.max(initial=0), np.finfo(np.float64).tiny)).astype(np.float32)
    return scores


def _without_uncut(
    model: CalibrationModel, structure: MatrixStructure, shares: dict[int, float], named: bool
) -> tuple[CalibrationModel, list[str]]:
    """The model without the weights that remain dense with N:M, and the paths of the weights that N:M doesn't fit."""
    wrong = {use.leaf: use for use in model.program.uses if shares[use.leaf] > 0 and not fits(structure, use)}
    dense = {leaf for leaf, share in shares.items() if share == 0} | wrong.keys()
    uses = [use for use in model.program.uses if use.leaf not in dense]
    if wrong and (named or not uses):
        leaf, use = next(iter(wrong.items()))
        raise ValueError(misfit(structure, model.paths[leaf], use))
    return model._replace(program=model.program._replace(uses=uses)), [model.paths[leaf] for leaf in wrong]
