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

    No data are needed: ones of the same shape replace floating-point inputs. The scores of a layer sum to the
    flow through it, which is the same for all layers of a chain, so that no layer is pruned away. This holds
    only if the scores are recomputed while weights are pruned, as in the 100 rounds of `prune_at_init`.

    The network must be positively homogeneous: linear layers, ReLU, pooling, residual sums. A BatchNorm that
    applies its initial statistics (mean 0, variance 1) changes nothing and is fine. A norm that divides by the
    statistics of its own input (LayerNorm, BatchNorm in training mode) undoes every scale: the gradients of
    the layers before it are almost zero and the scores mean little. Leave such norms out of `fn`.

    Args:
      fn: `fn(params, *inputs) -> outputs`, a pytree whose floating-point leaves are summed.
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged. The absolute
        values of biases are used too (at initialization they are 0).
      *inputs: arrays or `jax.ShapeDtypeStruct`s; integers (tokens) are used as they are. One sample is enough.
      structure: how weights form units; the score of a unit is the sum over its weights.
      scale: the value of the ones, and the factor of the outputs. Scores are proportional to its square and
        keep their order (without biases). R grows exponentially with depth: 2.0**-100 keeps a deep residual
        network in the range of float32.

    Returns:
      Tree like `params` of float32 scores. Every weight has the score of its unit.

    Raises:
      ValueError: if there is no input, or no floating-point output.

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
            raise ValueError(
                "`fn` must return floating-point outputs, got none: SynFlow differentiates their sum."
            )
        return sum((scale * jnp.sum(y, dtype=jnp.float32) for y in outputs), jnp.float32(0))

    magnitudes = [jnp.abs(w) for w in floats]
    grads = jax.grad(flow)(magnitudes)
    scores = [
        jnp.abs(m.astype(jnp.float32) * g.astype(jnp.float32)) for m, g in zip(magnitudes, grads, strict=True)
    ]
    return join(over_units(params, scores, structure))
