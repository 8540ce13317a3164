"""Refinement of the masks of a model that was pruned by any method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.engine.fitting import check_structure, fits, misfit
from jaxprune.calibration.engine.layers import LayerWeights
from jaxprune.calibration.engine.model import RowWeights, open_model
from jaxprune.calibration.engine.results import OnLayer
from jaxprune.calibration.engine.sending import send_through
from jaxprune.calibration.engine.unseen import warn_of_unseen_leaves
from jaxprune.calibration.methods import Refinement, Swaps
from jaxprune.jaxprs.program import Use
from jaxprune.params import PyTree, aligned, flatten_with_paths, is_kept_whole, mask_leaves
from jaxprune.structures import Structure, Unstructured
from jaxprune.structures.matrix import MatrixStructure


def swap_refine(
    fn: Callable[..., Any],
    params: PyTree,
    pruned: PyTree,
    masks: PyTree,
    batches: Iterable[Any],
    structure: Structure = Unstructured(),
    swaps: Refinement = Swaps(),
    *,
    row_weights: RowWeights | None = None,
    on_layer: OnLayer | None = None,
    progress: bool | None = None,
) -> tuple[PyTree, PyTree]:
    """Swaps kept and pruned weights of each output while the error of its layer falls; see `Swaps`.

    Each layer is refined on the outputs of the refined layers before it. Each output keeps its number of kept
    weights, and N:M masks remain N:M.

    Args:
      fn: function of (params, *inputs).
      params: the dense parameters, which define the outputs that the layers should reproduce.
      pruned: the pruned parameters.
      masks: the masks of the pruned parameters. Leaves whose mask is a scalar, and leaves that multiply no
        activations, are returned as they are in `pruned`.
      batches: iterable of batches of the same shape. A batch is a tuple of inputs, or one input.
      structure: `Unstructured()`, or the `NM(n, m)` of the masks.
      swaps: `Swaps(...)`, or another refinement such as `LeastSquares()`.
      row_weights: function of the inputs of a batch that returns the weights of the rows, such as the padding mask.
      on_layer: function that is called with a `LayerResult` for each weight.
      progress: whether to show a progress bar; None for a bar if the standard error is a terminal.

    Returns:
      (params, masks), as `reconstruct` returns them.

    Raises:
      ValueError: if trees don't match; if masks don't have the structure; if `reconstruct` would raise one.

    Warns:
      UserWarning: if weights have inputs that are 0 in every row; the kept ones among them keep their values.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> fn = lambda params, x: x @ params["w"]
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> masks = jp.make_masks(jp.scores.magnitude(params), 0.5)
      >>> pruned = jp.apply_masks(params, masks)
      >>> x = jax.random.normal(jax.random.key(1), (32, 8)) * jnp.arange(1, 9)
      >>> better, _ = jp.swap_refine(fn, params, pruned, masks, [x])
      >>> error = lambda p: float(jnp.sum((fn(p, x) - fn(params, x)) ** 2))
      >>> error(better) < error(pruned)
      True

    References:
      Zimmer et al., SparseSwaps: Tractable LLM Pruning Mask Refinement at Scale, 2025, arXiv:2512.10922.
    """
    cutting = check_structure(structure)
    paths, leaves, treedef = flatten_with_paths(params)
    pairs = zip(aligned(params, pruned, "pruned"), mask_leaves(params, masks), strict=True)
    given = dict(zip(paths, pairs, strict=True))
    for path, leaf in zip(paths, leaves, strict=True):
        if np.shape(given[path][0]) != np.shape(leaf):
            raise ValueError(
                f"`pruned` must have the shapes of `params`: {np.shape(leaf)} at {path!r}, "
                f"got {np.shape(given[path][0])}."
            )
    # A weight that the pattern does not fit is dense, so it has no weights to swap.
    whole = is_kept_whole if cutting.matrix_units().kept is None else np.all
    chosen = [not whole(mask) for _, mask in given.values()]
    # Leaves without a mask are taken from the pruned model, whose biases may have been trained since.
    dense = [
        x if is_chosen else given[path][0] for path, x, is_chosen in zip(paths, leaves, chosen, strict=True)
    ]
    dense, where = (jax.tree.unflatten(treedef, x) for x in (dense, chosen))
    model = open_model(fn, dense, batches, where, row_weights, named=False)
    lost = set(model.lost)
    values = [
        jnp.asarray(given[p][0]) if p in lost else x for p, x in zip(model.paths, model.values, strict=True)
    ]
    model = model._replace(values=values)
    before = {}
    for use in model.program.uses:
        path = model.paths[use.leaf]
        w, mask = given[path]
        mask = np.ascontiguousarray(np.broadcast_to(np.asarray(mask), np.shape(w)))
        _check_pattern(cutting, path, use, mask)
        before[use.leaf] = np.where(mask, np.array(w), np.zeros((), w.dtype)), mask
    layers = LayerWeights(model, cutting, before=before)

    def start(use, w0, xtx, now, shared):
        del use, w0, xtx, shared
        return now

    send_through(layers, start, (swaps,), on_layer=on_layer, progress=progress)
    warn_of_unseen_leaves(
        layers.model, layers.unseen, "The kept ones among them keep their values", stacklevel=2
    )
    start_from, masks = (jax.tree.unflatten(treedef, x) for x in zip(*given.values(), strict=True))
    return layers.result(start_from, masks)


def _check_pattern(structure: MatrixStructure, path: str, use: Use, mask: np.ndarray) -> None:
    """Raises a ValueError if a mask is not N:M along the inputs."""
    units = structure.matrix_units()
    if units.kept is None:
        return
    if not fits(structure, use):
        raise ValueError(misfit(structure, path, use))
    kept = use.matrix.of(mask)
    most = int(kept.reshape(kept.shape[0], -1, units.inputs, kept.shape[2]).sum(axis=2).max(initial=0))
    if most > units.kept:
        raise ValueError(
            f"`masks` must be {units.label} along the inputs, got {most} kept of "
            f"{units.inputs} at {path!r}. Pass the structure of the masks."
        )
