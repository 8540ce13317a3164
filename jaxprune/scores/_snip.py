"""Connection sensitivity (SNIP)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp

from jaxprune.params import PyTree
from jaxprune.scores._gradients import batches_of, checked_loss, mean_gradients, split_floats
from jaxprune.scores._unit_sum import over_units
from jaxprune.structures import LeafStructure, Unstructured


def snip(
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    *batch: Any,
    batches: Iterable[Any] | None = None,
    structure: LeafStructure = Unstructured(),
) -> PyTree:
    r"""Effect on the loss of a gate at each weight: \(|w\,g|\), \(g = \partial L/\partial w\).

    For a unit the gate is common to its weights: \(|\sum w\,g|\). The paper divides by the sum over the
    network, which changes no order. It is meant for a network at initialization.

    Args:
      loss_fn: (params, batch) -> scalar, the mean over the batch.
      params: pytree of arrays; leaves that are not floating-point arrays pass through unscored.
      *batch: one batch or more; g is the mean over them.
      batches: the same as one iterable of batches, as `jp.calibrate` takes it: pass one of the two.
      structure: what a unit is.

    Returns:
      Tree like `params` of float32 scores; a unit's at every one of its weights.

    Raises:
      ValueError: no batch, batches in both places, or a loss that is no scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, -2.0]])}
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)  # its gradient is x
      >>> jp.scores.snip(loss_fn, params, jnp.array([[3.0, 0.5]]))["w"]
      Array([[3., 1.]], dtype=float32)

    References:
      Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2018,
      arXiv:1810.02340.
    """
    floats, join = split_floats(params)
    grads = mean_gradients(checked_loss(loss_fn, join), floats, batches_of(batch, batches))
    products = [w.astype(jnp.float32) * g for w, g in zip(floats, grads, strict=True)]
    return join(over_units(params, products, structure, jnp.abs))
