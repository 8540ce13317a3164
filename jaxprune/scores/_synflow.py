"""Synaptic flow (SynFlow)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, is_float_array
from jaxprune.scores._gradients import split_floats
from jaxprune.scores._unit_sum import over_units
from jaxprune.structures import LeafStructure, Unstructured


def synflow(
    fn: Callable[..., Any],
    params: PyTree,
    *inputs: Any,
    structure: LeafStructure = Unstructured(),
    scale: float = 1.0,
) -> PyTree:
    r"""Flow through each weight: \(|w\,\partial R/\partial |w||\), R the sum of the outputs for |w| and ones.

    No data are needed: floating-point inputs are replaced by ones of their shape. A layer's scores sum to
    what flows through it, which is the same for all layers of a chain, so none is starved; but that holds
    only if scores are computed anew as weights go: `prune_at_init` with its 100 rounds.

    That needs a network that is positively homogeneous: linear layers, ReLU, pooling, residual sums.
    A BatchNorm that applies its initial statistics (mean 0, variance 1) does nothing and is fine. A norm that
    divides by the statistics of its own input (LayerNorm, a BatchNorm in training) undoes every scale: the
    gradient behind it is all but zero and the scores mean little. Leave such norms out of `fn`.

    Args:
      fn: `fn(params, *inputs) -> outputs`, a pytree whose floating-point leaves are summed.
      params: pytree of arrays; leaves that are not floating-point arrays pass through unscored. Biases enter
        with their absolute values too (at initialization they are 0).
      *inputs: arrays or `jax.ShapeDtypeStruct`s; integers (tokens) are used as they are. One sample is enough.
      structure: what a unit is; its score is the sum over its weights.
      scale: what the ones are, and what the outputs are weighted by. Scores scale with its square and keep
        their order (without biases). R grows exponentially with depth: 2.0**-100 keeps a deep residual
        network in the range of float32.

    Returns:
      Tree like `params` of float32 scores; a unit's at every one of its weights.

    Raises:
      ValueError: no input, or no floating-point output.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = [jnp.array([[1.0, -2.0]]), jnp.array([[-3.0], [0.5]])]
      >>> mlp = lambda params, x: jnp.maximum(x @ params[0], 0) @ params[1]
      >>> jp.scores.synflow(mlp, params, jnp.zeros((1, 1)))
      [Array([[3., 1.]], dtype=float32), Array([[3.],
             [1.]], dtype=float32)]

    References:
      Tanaka, Kunin, Yamins, Ganguli, Pruning neural networks without any data by iteratively conserving
      synaptic flow, 2020, arXiv:2006.05467.
    """
    if not inputs:
        raise ValueError("`inputs` is empty: pass arrays (or shapes) that `fn` takes after the parameters.")
    floats, join = split_floats(params)
    ones = jax.tree.map(lambda x: jnp.full(x.shape, scale, x.dtype) if is_float_array(x) else x, inputs)

    def flow(magnitudes: list[jax.Array]) -> jax.Array:
        outputs = [y for y in jax.tree.leaves(fn(join(magnitudes), *ones)) if is_float_array(y)]
        if not outputs:
            raise ValueError("`fn` must give floating-point outputs, got none: their sum is what flows.")
        return sum((scale * jnp.sum(y, dtype=jnp.float32) for y in outputs), jnp.float32(0))

    magnitudes = [jnp.abs(w) for w in floats]
    grads = jax.grad(flow)(magnitudes)
    scores = [
        jnp.abs(m.astype(jnp.float32) * g.astype(jnp.float32)) for m, g in zip(magnitudes, grads, strict=True)
    ]
    return join(over_units(params, scores, structure))
