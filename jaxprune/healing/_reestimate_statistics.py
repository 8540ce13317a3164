"""Statistics of activations, such as BatchNorm's, estimated anew from batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.engine.model import inputs_of
from jaxprune.healing.arrays import split
from jaxprune.healing.momentum import momenta
from jaxprune.healing.pairing import new_values
from jaxprune.healing.pooling import Pool, pooled
from jaxprune.healing.running_statistics import counters_of, statistics_of
from jaxprune.params import PyTree
from jaxprune.progress import steps_bar
from jaxprune.surgery.inference.model import State


def reestimate_statistics(
    train_fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    state: State | None = None,
    progress: bool = False,
) -> PyTree:
    r"""Estimates BatchNorm's means and variances anew from batches: after pruning they are those of another model.

    Each batch goes through the model in training mode once. With $\mu_b, \sigma^2_b$ the statistics of batch b of n,

    $$\mu = \frac1n \sum_b \mu_b, \quad \sigma^2 = \frac1n \sum_b \left(\sigma^2_b + (\mu_b - \mu)^2\right),$$

    the mean and variance of all batches together, whatever the layer's momentum and whatever the statistics were.
    (After the first BatchNorm the activations are those of training mode, in which the layers before normalise each
    batch by itself.) Nothing else in the parameters changes.

    Args:
      train_fn: function of (params, *inputs) in training mode. Its outputs contain the new statistics, each under the
        path of its parameter: `(logits, {"batch_stats": ...})` of Linen's `mutable=["batch_stats"]` or Equinox's
        `(logits, state)`. Of an NNX module it is a function of (module, *inputs), which may return anything.
      params: pytree of arrays with the statistics in it: Linen's variables, `(model, state)` of Equinox, `(params,
        state)` of Haiku. An `nnx.Module` is updated in place.
      batches: iterable of batches of the same shape. A batch is a tuple of inputs, or one input. Larger batches
        estimate better.
      state: function of (params, outputs) that returns the old and the new statistics, for outputs with other
        paths, as in `jp.find_groups`.
      progress: whether to show a progress bar.

    Returns:
      A tree like `params` with new statistics; for an NNX module the module itself.

    Raises:
      ValueError: if there is no batch, or batches differ in shape; if no output is a new mean or variance; if the
        function does not move the statistics toward those of the batch (evaluation mode); if a new statistic has
        another shape; if statistics of a batch are NaN or infinite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> from flax import linen as nn
      >>> model = nn.BatchNorm(use_running_average=False, use_bias=False, use_scale=False)
      >>> variables = model.init(jax.random.key(0), jnp.ones((2, 1)))
      >>> train_fn = lambda variables, x: model.apply(variables, x, mutable=["batch_stats"])
      >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])]
      >>> jp.reestimate_statistics(train_fn, variables, batches)["batch_stats"]
      {'mean': Array([4.], dtype=float32), 'var': Array([5.], dtype=float32)}

    References:
      Ioffe, Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift,
      2015, arXiv:1502.03167.
      Wu, Johnson, Rethinking "Batch" in BatchNorm, 2021, arXiv:2105.07576 (precise BatchNorm).
      Li et al., EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning, 2020, arXiv:2007.02491
      (statistics anew after pruning).
    """
    inputs = inputs_of(batches)
    if _is_nnx_module(params):
        from jaxprune.healing.nnx_statistics import as_function

        pure, variables, update = as_function(train_fn, params)
        update(_reestimated(pure, variables, inputs, lambda old, new: (old, new), progress))
        return params
    return _reestimated(train_fn, params, inputs, state, progress)


def _reestimated(
    train_fn: Callable[..., Any],
    params: PyTree,
    batches: list[tuple[Any, ...]],
    state: State | None,
    progress: bool,
) -> PyTree:
    leaves, treedef = jax.tree.flatten(params)
    arrays, join = split(params)
    first, join_inputs = split(batches[0])
    outputs = jax.eval_shape(lambda a, b: train_fn(join(a), *join_inputs(b)), arrays, first)
    pairs = new_values(params, outputs, state)
    found = [stat for stat in statistics_of(params) if stat.place in pairs and stat.kind != "other"]
    if not found:
        raise ValueError(
            "`train_fn` must return new means or variances of `params`, but no output has the path of one. In Linen "
            "pass mutable=['batch_stats']; with other names pair them by `state`."
        )
    shapes = [x.shape for x in jax.tree.leaves(outputs)]
    for stat in found:
        if shapes[pairs[stat.place]] != leaves[stat.place].shape:
            raise ValueError(
                f"`train_fn` must return new statistics of the shape of the old ones, got {shapes[pairs[stat.place]]} "
                f"for {leaves[stat.place].shape} at {stat.path!r}."
            )
    counters = counters_of(params)

    @jax.jit
    def update(olds: list[Any], arrays: list[Any], inputs: list[Any]) -> list[Any]:
        """The statistics after one batch, from these before it."""
        full = jax.tree.leaves(join(arrays))
        for counter in counters:
            full[counter.place] = counter.fresh(full[counter.place])
        for stat, old in zip(found, olds, strict=True):
            for place in stat.places:
                full[place] = old
        outputs = jax.tree.leaves(train_fn(jax.tree.unflatten(treedef, full), *join_inputs(inputs)))
        return [_wide(outputs[pairs[stat.place]]) for stat in found]

    nothing = [jnp.zeros(leaves[stat.place].shape, stat.dtype) for stat in found]
    scales = [1 / (1 - m) for m in momenta(lambda olds: update(olds, arrays, first), nothing, found)]

    @jax.jit
    def add(pool: Pool, news: list[Any]) -> Pool:
        return pool.add([new * scale for new, scale in zip(news, scales, strict=True)])

    pool = Pool.empty(nothing)
    with steps_bar("statistics", len(batches), progress) as advance:
        for batch in batches:
            pool = add(pool, update(nothing, arrays, split(batch)[0]))
            advance(pool.means)
    for stat, value in zip(found, pooled(pool, found), strict=True):
        for place in stat.places:
            leaves[place] = jnp.asarray(value, leaves[place].dtype)
    for counter in counters:
        leaves[counter.place] = counter.settled(leaves[counter.place])
    return jax.tree.unflatten(treedef, leaves)


def _is_nnx_module(params: PyTree) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(params, nnx.Module)


def _wide(x: Any) -> jax.Array:
    """In float32 at least."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
