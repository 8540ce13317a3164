"""Gradient signal preservation (GraSP)."""

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


def grasp(
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    *batch: Any,
    batches: Iterable[Any] | None = None,
    structure: LeafStructure = Unstructured(),
) -> PyTree:
    r"""Signed contribution of a weight to the gradient norm: \(w\,(H g)\); of a unit: \(\sum w\,(H g)\).

    To first order, pruning a weight changes \(g^T g\) by \(-2\,w\,(H g)\). The paper defines the score as
    \(-w\,(H g)\) and prunes the largest. Here the largest scores are kept, so the sign is the opposite.
    \(H g\) is one forward derivative of the gradient; no Hessian is formed. The score is meant for a network
    at initialization. The paper divides the logits by a temperature of 200; do this in `loss_fn`.

    Args:
      loss_fn: (params, batch) -> scalar, the mean over the batch.
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged.
      *batch: one or more batches; g and H are the derivatives of the mean loss over them.
      batches: the same as one iterable of batches, as `jp.calibrate` takes it: pass one of the two.
      structure: how weights form units.

    Returns:
      Tree like `params` of float32 scores of both signs. Every weight has the score of its unit.

    Raises:
      ValueError: if there is no batch, batches are in both places, or the loss is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([1.0, -2.0])}
      >>> loss_fn = lambda params, a: jnp.sum(a * params["w"] ** 2) / 2  # g = a w, H = diag(a)
      >>> jp.scores.grasp(loss_fn, params, jnp.array([1.0, 3.0]))["w"]
      Array([ 1., 36.], dtype=float32)

    References:
      Wang, Zhang, Grosse, Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020,
      arXiv:2002.07376.
    """
    floats, join = split_floats(params)
    loss = checked_loss(loss_fn, join)
    given = batches_of(batch, batches)
    grads = mean_gradients(loss, floats, given)
    direction = [g.astype(w.dtype) for w, g in zip(floats, grads, strict=True)]

    def hessian_times_direction(batch: Any) -> list[jax.Array]:
        return jax.jvp(lambda ws: jax.grad(loss)(ws, batch), (floats,), (direction,))[1]

    products = mean_over_batches(hessian_times_direction, given)
    scores = [w.astype(jnp.float32) * hg for w, hg in zip(floats, products, strict=True)]
    return join(over_units(params, scores, structure))
