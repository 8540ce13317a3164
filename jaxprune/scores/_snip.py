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
    r"""Sensitivity of the loss to a gate on each weight: \(|w\,g|\), \(g = \partial L/\partial w\).

    The weights of a unit share one gate: \(|\sum w\,g|\). The paper divides by the sum over the network, which
    does not change the order. The score is meant for a network at initialization.

    Args:
      loss_fn: (params, batch) -> scalar, the mean over the batch.
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged.
      *batch: one or more batches; g is the mean over them.
      batches: the same as one iterable of batches, as `jp.calibrate` takes it: pass one of the two.
      structure: how weights form units.

    Returns:
      Tree like `params` of float32 scores. Every weight has the score of its unit.

    Raises:
      ValueError: if there is no batch, batches are in both places, or the loss is not a scalar.

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
