"""Training of the kept weights of a pruned model, branch by branch, toward the branches of the dense model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.engine.fingerprint import fingerprint
from jaxprune.calibration.engine.finished import store_result, stored_result
from jaxprune.calibration.engine.journal import Journal
from jaxprune.calibration.engine.model import RowWeights, open_model
from jaxprune.calibration.engine.results import WindowResult
from jaxprune.calibration.engine.windows import Windows, trainable
from jaxprune.calibration.methods.refit import Refit
from jaxprune.masking import apply_masks
from jaxprune.params import PyTree, Where, aligned, flatten_with_paths, mask_leaves
from jaxprune.progress import steps_bar


def refit(
    fn: Callable[..., Any],
    params: PyTree,
    masks: Any,
    batches: Iterable[Any],
    settings: Refit = Refit(),
    *,
    dense: PyTree | None = None,
    where: Where = None,
    row_weights: RowWeights | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_layer: Callable[[WindowResult], None] | None = None,
    progress: bool | None = None,
) -> PyTree:
    r"""Trains the kept weights of each residual branch toward the output of the dense branch, without labels.

    The masks remain as they are. The windows of the model (see `Refit`) are refitted in order: each is trained on
    the outputs of the refitted windows before it, and no window is left with a larger error over the batches than it
    had. Windows of one kind are compiled once.

    Parameters that several windows read (tied weights) are not trained, nor are embeddings and statistics.

    Args:
      fn: function of (params, *inputs).
      params: the pruned parameters. Entries under a False mask are set to zero.
      masks: tree of masks (True = keep), as `reconstruct` returns, or a `Plan`. With a plan, `params` are the full
        parameters, such as those that `compensate` returns, and `plan.shrink` makes small ones of the result.
      batches: iterable of batches of the same shape. A batch is a tuple of inputs, or one input. Every step
        takes one of them, so small batches are better here.
      settings: `Refit(...)`.
      dense: the dense parameters; None if `params` are dense, without zeros under the masks.
      where: tree of bools (or a prefix of one, or a function that returns it) that selects what may be trained;
        None for all float arrays but embeddings and statistics.
      row_weights: function of the inputs of a batch that returns the weights of the rows, such as the padding mask.
      checkpoint: a folder for the results of the windows, so that a run that was stopped goes on to the same bits when
        it is called again with the same arguments; see `reconstruct`. None stores nothing.
      on_layer: function that is called with a `WindowResult` for each window; a `jp.LayerLog()` makes a table of them.
      progress: whether to show a progress bar; None for a bar if the standard error is a terminal.

    Returns:
      Parameters like `params`, in their dtypes, with zeros where the masks are False.

    Raises:
      ValueError: if trees or shapes don't match; if `params` are pruned already and `dense` is missing; if there is
        no batch, or batches differ in shape; if no weight multiplies activations; if nothing is left to train; if
        `checkpoint` is the folder of another run.
      TypeError: if parameters are tracers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> params = {"up": jax.random.normal(keys[0], (8, 16)), "down": jax.random.normal(keys[1], (16, 8))}
      >>> fn = lambda p, x: x + jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> batches = list(jax.random.normal(keys[2], (4, 64, 8)))
      >>> masks = jp.make_masks(jp.scores.magnitude(params), 0.5)
      >>> found = []
      >>> better = jp.refit(fn, params, masks, batches, on_layer=found.append)
      >>> found[0].path, found[0].error < 0.8 * found[0].before
      ('down, up', True)

    References:
      Guo et al., EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs, 2024, arXiv:2402.12419.
    """
    if not isinstance(settings, Refit):
        raise TypeError(f"`settings` must be a `Refit(...)`, got {settings!r}.")
    dense = params if dense is None else dense
    if callable(getattr(masks, "masks", None)):  # a plan
        masks = masks.masks(dense)
    masks = jax.tree.unflatten(jax.tree.structure(params), mask_leaves(params, masks))
    pruned = apply_masks(params, masks)
    paths, leaves, treedef = flatten_with_paths(pruned)
    if dense is params and _are_zero(params, masks):
        raise ValueError(
            "`params` are pruned already, so they are not the model to come near to: pass the dense ones as `dense`."
        )
    whole = aligned(pruned, dense, "dense")
    for path, leaf, full in zip(paths, leaves, whole, strict=True):
        if np.shape(leaf) != np.shape(full):
            raise ValueError(
                f"`dense` must have the shapes of `params`: {np.shape(leaf)} at {path!r}, got {np.shape(full)}."
            )
    flags = trainable(pruned, where, settings)
    weights = trainable(pruned, None, dataclasses.replace(settings, weights=True))
    tracked = [flag and np.ndim(leaf) > 1 for flag, leaf in zip(weights, leaves, strict=True)]
    dense, tracked = (jax.tree.unflatten(treedef, x) for x in (whole, tracked))
    model = open_model(fn, dense, batches, tracked, row_weights, named=False)
    position = {path: leaf for leaf, path in enumerate(model.paths)}
    held = {
        position[path]: np.broadcast_to(np.asarray(mask), np.shape(leaf))
        for path, leaf, mask in zip(paths, leaves, jax.tree.leaves(masks), strict=True)
        if path in position and not np.all(mask)
    }
    now = list(model.values)
    for path, leaf in zip(paths, leaves, strict=True):
        if path in position:
            now[position[path]] = jnp.asarray(leaf)
    chosen = {position[path] for path, flag in zip(paths, flags, strict=True) if flag}
    strength = settings.dense_targets or 0.0
    windows = Windows(
        model.program, model.paths, model.values, held, chosen, model.row_weights, settings, strength
    )
    journal = None
    if checkpoint is not None:
        given = {"pruned": now, "masks": held, "where": chosen, "settings": settings}
        journal = Journal(checkpoint, fingerprint(model, given))
        finished = journal.result()
        if finished is not None:
            if on_layer is not None:
                for row in finished.rows:
                    on_layer(row)
            return stored_result(finished, pruned)[0]
    model = model._replace(program=model.program._replace(uses=[]))
    stream = model._replace(values=now).stream(windows.wanted)
    there = model.stream(windows.wanted_dense) if strength else None
    with steps_bar("refit", len(windows.windows), progress) as advance:
        for number in range(len(windows.windows)):
            result = windows.refit_one(number, stream, there, journal)
            if on_layer is not None:
                on_layer(result)
            advance(stream.param(0))
    new = [
        stream.param(position[path]) if path in position else leaf
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    new = jax.tree.unflatten(treedef, new)
    if journal is not None:
        store_result(journal, pruned, new, jax.tree.map(lambda _: True, new), {})
    return new


def _are_zero(params: PyTree, masks: PyTree) -> bool:
    """Whether the masks prune something, and all that they prune is 0."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True)
    lost = [
        np.asarray(leaf)[~np.broadcast_to(mask, np.shape(leaf))] for leaf, mask in pairs if not np.all(mask)
    ]
    return any(each.size for each in lost) and not any(np.any(each) for each in lost)
