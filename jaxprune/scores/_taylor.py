"""First-order Taylor importance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree
from jaxprune.scores._gradients import (
    batches_of,
    checked_loss,
    mean_gradients,
    mean_over_batches,
    split_floats,
)
from jaxprune.scores._unit_sum import over_units
from jaxprune.structures import LeafStructure, Unstructured


def taylor(
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    *batch: Any,
    batches: Iterable[Any] | None = None,
    structure: LeafStructure = Unstructured(),
) -> PyTree:
    r"""Squared first-order change of the loss when a unit is pruned: \((\sum w\,g)^2\); \((w\,g)^2\) for one weight.

    It ranks single weights as `snip` does. The paper uses it for trained networks and whole channels.

    Args:
      loss_fn: (params, batch) -> scalar, the mean over the batch.
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged.
      *batch: one or more batches. The score is the mean of the squares of all batches, as the paper
        accumulates squares over mini-batches.
      batches: the same as one iterable of batches, as `jp.calibrate` takes it: pass one of the two.
      structure: how weights form units.

    Returns:
      Tree like `params` of float32 scores. Every weight has the score of its unit.

    Raises:
      ValueError: if there is no batch, batches are in both places, or the loss is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[1.0, -2.0], [1.0, 1.0]])}
      >>> loss_fn = lambda params, x: jnp.sum(params["w"] * x)  # its gradient is x
      >>> jp.scores.taylor(loss_fn, params, jnp.array([[3.0, 0.5], [-1.0, 3.0]]), structure=jp.Channels())["w"]
      Array([[4., 4.],
             [4., 4.]], dtype=float32)

    References:
      Molchanov, Mallya, Tyree, Frosio, Kautz, Importance Estimation for Neural Network Pruning, 2019,
      arXiv:1906.10771.
    """
    floats, join = split_floats(params)
    loss = checked_loss(loss_fn, join)

    def importances(batch: Any) -> list[jax.Array]:
        grads = mean_gradients(loss, floats, (batch,))
        products = [w.astype(jnp.float32) * g for w, g in zip(floats, grads, strict=True)]
        return over_units(params, products, structure, jnp.square)

    return join(mean_over_batches(importances, batches_of(batch, batches)))
