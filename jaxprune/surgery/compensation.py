"""Compensation: the kept weights are refitted so that they compensate the removed units."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.calibration import LayerResult, SparseGPT
from jaxprune.calibration.engine.activation_statistics import ActivationStatistics
from jaxprune.calibration.engine.model import (
    CalibrationModel,
    RowWeights,
    check_row_weights,
    open_model,
    shared_moments,
    with_progress,
)
from jaxprune.calibration.engine.unseen import warn_of_unseen_leaves
from jaxprune.calibration.methods.method import over_groups
from jaxprune.host import beside, to_device
from jaxprune.jaxprs import is_array_leaf
from jaxprune.jaxprs.program import Use
from jaxprune.jaxprs.rows import Rows
from jaxprune.jaxprs.stream import Site
from jaxprune.jaxprs.uses import otherwise_used
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.statistics.moments import Moments, cross_moment, safe_scale
from jaxprune.surgery.planning.plan import Plan
from jaxprune.surgery.scores.obs import with_unit_diagonal


def compensate(
    fn: Callable[..., Any],
    params: PyTree,
    plan: Plan,
    batches: Iterable[Any],
    *,
    damping: float = 0.01,
    statistics: bool = True,
    row_weights: RowWeights | None = None,
    on_layer: Callable[[LayerResult], None] | None = None,
    progress: bool | None = None,
) -> PyTree:
    r"""Refits the weights that lose inputs, from calibration batches, in one pass through the model.

    Let W0 be a weight whose inputs X include units that the plan removes, and K the rows that it keeps. The new
    rows minimize $\|X_K W_K - X W_0\|^2 + \text{damping} \sum_i \|x_i\|^2 \|W_i - W_{0,i}\|^2$. The model is
    refitted layer by layer: $X_K$ are the inputs in the model that is pruned and refitted so far, and X the inputs
    in the same model with the removed units still present. The two models run side by side. So a layer compensates
    its own removed inputs, and the changes that the removal causes in the norms before it.

    Weights that lose no input keep their values, except for the entries that the plan removes. The same holds for
    weights that `prunable` leaves out, and for weights with a second use of another kind, such as tied
    embeddings: a refit for one use would harm the other.

    Args:
      fn: the function that was analysed.
      params: the full parameters, as arrays.
      plan: the units to remove.
      batches: iterable of batches of one shape: each a tuple of inputs, or one input.
      damping: penalty on changes of a weight; it is added to the diagonal of $X^T X$, relative to each of its
        entries.
      statistics: whether means and variances that are parameters, such as BatchNorm's in inference, follow the
        refitted weights before them: each normalized channel that is kept has the mean and the variance over the
        batches that it has in the dense model. Those that several places share remain as they are. It needs another
        pass if there are such parameters.
      row_weights: function of the inputs of a batch that returns the weights of the rows, such as the padding mask.
      on_layer: function that is called with a `LayerResult` for each weight that loses inputs: its error on these
        batches relative to $\|X W_0\|^2$, and the fraction of its inputs that are removed.
      progress: whether to show a progress bar; None for a bar if the standard error is a terminal.

    Returns:
      The full parameters, with new statistics and with zeros at the entries that the plan removes. `plan.shrink`
      makes the small parameters from them.

    Raises:
      ValueError: if the plan was not made for these parameters; if `damping` is negative; in the cases in which
        `jp.calibrate` raises one.
      TypeError: if the parameters are tracers.

    Warns:
      UserWarning: if kept weights have inputs that are 0 in every row. These weights keep their values.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "down": jnp.array([[2.0], [1.0], [3.0]])}
      >>> fn = lambda p, x: (x @ p["up"]) @ p["down"]  # its last unit is the sum of the other two
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> groups = jp.find_groups(fn, params, x)
      >>> plan = jp.surgery.plan_units(groups, {"down[0]": [True, True, False]})
      >>> small = plan.shrink(jp.compensate(fn, params, plan, [x], damping=0.0))
      >>> small["down"].round(3)
      Array([[5.],
             [4.]], dtype=float32)

    References:
      Kurtic, Frantar, Alistarh, ZipLM: Inference-Aware Structured Pruning of Language Models, 2023,
      arXiv:2302.04089.
      He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, 2017, arXiv:1707.06168.
    """
    if not damping >= 0:
        raise ValueError(f"`damping` must not be negative, got {damping!r}.")
    plan.check(params)
    paths, leaves, treedef = flatten_with_paths(params)
    masks = {}
    for path, leaf in zip(paths, leaves, strict=True):
        mask = plan.mask(path) if is_array_leaf(leaf) else True
        if mask is not True:
            masks[path] = np.broadcast_to(mask, np.shape(leaf))
    refitted: dict[str, Any] = {}
    if masks:
        model = open_model(fn, params, batches, None, row_weights)
        refitted = _Refit(model, masks, damping, statistics, on_layer).run(progress)
    new = [
        _masked(refitted.get(path, leaf), masks[path]) if path in masks else refitted.get(path, leaf)
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, new)


class _Products(NamedTuple):
    """Products of a site's inputs in the pruned and refitted model with its inputs in the model with all units."""

    here: jax.Array  # X_K^T X_K
    cross: jax.Array  # X_K^T X
    dense: jax.Array  # X^T X
    unseen: np.ndarray  # which inputs are always 0


def _same(moments: Moments) -> _Products:
    """The products if both models have the same inputs."""
    xtx = moments.xtx()
    return _Products(xtx, xtx, xtx, moments.unseen)


class _Refit:
    """The weights while they are refitted, and the two models that they are part of."""

    def __init__(
        self,
        model: CalibrationModel,
        masks: dict[str, np.ndarray],
        damping: float,
        statistics: bool,
        on_layer: Callable[[LayerResult], None] | None,
    ):
        self.model, self.damping, self.on_layer = model, damping, on_layer
        leaves = {leaf: masks[path] for leaf, path in enumerate(model.paths) if path in masks}
        self.masks = leaves
        used = {use.leaf for use in model.program.uses} & leaves.keys()
        self.weights = {leaf: np.array(model.values[leaf]) for leaf in used}
        self._open = {leaf: np.ones(w.shape, bool) for leaf, w in self.weights.items()}
        for leaf in used & otherwise_used(model.program, [value.shape for value in model.values]):
            self._open[leaf][...] = False
        pruned = [
            _masked(value, leaves[leaf]) if leaf in leaves else value
            for leaf, value in enumerate(model.values)
        ]
        self.statistics = ActivationStatistics(model) if statistics else None
        wanted = [] if self.statistics is None else self.statistics.wanted
        self.alive = model.stream(wanted)  # removed units are present, except as inputs of refitted weights
        self.pruned = model._replace(values=pruned).stream(wanted)
        if self.statistics is not None:
            self.statistics.follow(self.pruned, self.alive)
            for leaf in leaves:
                self.statistics.changed(leaf, pruned[leaf])
        self.shared = shared_moments(model)
        self.unseen: dict[int, int] = {}  # kept weights of a leaf whose inputs are always 0

    def run(self, progress: bool | None) -> dict[str, Any]:
        """The refitted parameters by path."""
        fits, seen = False, False
        for site, pruned in zip(with_progress(self.alive, progress, "compensate"), self.pruned, strict=True):
            uses = [use for use in site.uses if self._loses(use)]
            moments: Any = None
            for use in uses:
                if (use.leaf, use.matrix) in self.shared:
                    shared = self.shared[use.leaf, use.matrix]
                    self._refit(use, _same(shared))
                    continue
                if moments is None:
                    moments, fit = self._moments(site, pruned, self._kept(use)[0])
                    fits, seen = fits or fit, True
                self._refit(use, moments)
            for leaf in {use.leaf for use in uses}:
                value = to_device(self.weights[leaf].copy(), self.model.values[leaf])
                self.alive.set_param(leaf, value)
                self.pruned.set_param(leaf, _masked(value, self.masks[leaf]))
                if self.statistics is not None:
                    self.statistics.changed(leaf, value)
        new = dict(self.weights)
        if self.statistics is not None:
            self.statistics.finish()
            new |= self.statistics.values
        if seen and not fits:
            check_row_weights(self.model.row_weights)
        warn_of_unseen_leaves(
            self.model, self.unseen, "The kept ones among them keep their values", stacklevel=3
        )
        return {self.model.paths[leaf]: beside(w, self.model.values[leaf]) for leaf, w in new.items()}

    def _loses(self, use: Use) -> bool:
        """Whether a weight that may be refitted loses inputs."""
        if use.leaf not in self.weights or not use.matrix.of(self._open[use.leaf]).all():
            return False
        rows, outputs, whole = self._kept(use)
        return whole and not bool((rows | ~outputs.any(1, keepdims=True)).all())

    def _kept(self, use: Use) -> tuple[np.ndarray, np.ndarray, bool]:
        """Which inputs and outputs of a weight are kept, and whether these two masks make up the whole mask."""
        mask = use.matrix.of(np.ascontiguousarray(self.masks[use.leaf]))
        rows, outputs = np.any(mask, axis=2, keepdims=True), np.any(mask, axis=1, keepdims=True)
        return rows[:, :, 0], outputs[:, 0, :], bool(np.all(mask == (rows & outputs)))

    def _moments(self, site: Site, pruned: Site, rows: np.ndarray) -> tuple[_Products, bool]:
        """The products of a site's inputs, and whether the row weights fit."""
        dense, fit = self.model.moments(site, "full")
        of = site.uses[0].rows
        pairs = zip(pruned.activations, site.activations, strict=True)
        if all(bool(_equal(of, rows, x, y)) for x, y in pairs):
            return _same(dense), fit
        here, _ = self.model.moments(pruned, "full")
        scale = np.maximum(here.largest_scale, dense.largest_scale)
        cross = cross_moment(pruned.activations, site.activations, of, self.model.row_weights, scale)
        return _Products(here.xtx(scale), cross, dense.xtx(scale), here.unseen), fit

    def _refit(self, use: Use, of: _Products) -> None:
        rows, outputs, _ = self._kept(use)
        weights = self.weights[use.leaf]
        w0 = use.matrix.of(weights).astype(np.float32)
        size = safe_scale(np.max(np.abs(w0), initial=0))
        w0 = jnp.asarray(w0 / size)
        unit, norms = over_groups(_kept_unit_norm)(of.here, jnp.asarray(rows))
        factor = over_groups(SparseGPT(damping=self.damping).factorize)(unit)
        w = over_groups(_refitted)(w0, of.here, of.cross, jnp.asarray(rows), factor, norms)
        lost = np.asarray(of.unseen) & rows
        self.unseen[use.leaf] = self.unseen.get(use.leaf, 0) + int(lost.sum()) * use.matrix.shape[2]
        new = np.where(
            np.asarray(w == w0), use.matrix.of(weights), np.asarray((w * size).astype(weights.dtype))
        )
        use.matrix.put(weights, new)
        use.matrix.put(self._open[use.leaf], np.zeros(use.matrix.shape, bool))
        if self.on_layer is not None:
            error = _relative_error(w0, w, of.here, of.cross, of.dense, jnp.asarray(outputs))
            share = 1 - float(rows[outputs.any(1)].mean())
            self.on_layer(LayerResult(self.model.paths[use.leaf], float(error), share))


def _masked(value: Any, mask: np.ndarray) -> jax.Array:
    return jnp.where(mask, value, jnp.zeros((), value.dtype))


@functools.partial(jax.jit, static_argnums=0)
def _equal(of: Rows, kept: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.all((of(x) == of(y)) | ~kept[:, None, :])


@jax.jit
def _kept_unit_norm(gram: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    return with_unit_diagonal(jnp.where(rows[:, None] & rows[None, :], gram, 0.0))


@jax.jit
def _refitted(
    w0: jax.Array, gram: jax.Array, cross: jax.Array, rows: jax.Array, factor: jax.Array, norms: jax.Array
) -> jax.Array:
    """W0 with the kept rows refitted and the others zero; an output that does not improve keeps its weights."""
    multiply = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    missing = jnp.where(rows[:, None], cross - jnp.where(rows[None, :], gram, 0.0), 0.0)
    scale = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1.0), 0.0)[:, None]
    change = scale * multiply(factor.T, multiply(factor, scale * multiply(missing, w0)))
    left = jnp.where(rows[:, None], w0, 0.0)
    wanted = multiply(cross, w0)

    def error(w):  # without the term that does not depend on w
        return jnp.sum(w * (multiply(gram, w) - 2 * wanted), axis=0)

    new = left + change
    return jnp.where((error(new) <= error(left))[None], new, left)


@jax.jit
def _relative_error(
    w0: jax.Array, w: jax.Array, gram: jax.Array, cross: jax.Array, dense: jax.Array, outputs: jax.Array
) -> jax.Array:
    """||X_K W - X W0||^2 / ||X W0||^2 over the outputs that are kept."""

    def energy(left, moment, right):
        product = jnp.einsum("gij,gjo->gio", moment, right, precision=lax.Precision.HIGHEST)
        return jnp.sum(jnp.where(outputs, jnp.sum(left * product, axis=1), 0.0))

    before = energy(w0, dense, w0)
    return (energy(w, gram, w) - 2 * energy(w, cross, w0) + before) / jnp.where(before > 0, before, 1.0)
