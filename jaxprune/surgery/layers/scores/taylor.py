"""First-order Taylor score: change of the loss when the output of a branch becomes zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxprune.params import PyTree
from jaxprune.surgery.layers.branches import Branches
from jaxprune.surgery.layers.scores._gates import arrays_of, gated_loss, listed


def branch_taylor(
    branches: Branches, loss_fn: Callable[[PyTree, Any], Any], params: PyTree, batches: Iterable[Any]
) -> dict[str, float]:
    r"""First-order change of the loss without a branch: \( s = |\sum_i y_i \, \partial L / \partial y_i| \).

    y is the output of the branch, so the sum is the derivative by a number that multiplies it; one backward
    pass a batch gives all branches. Over several batches the scores are averaged, not the derivatives, which
    cancel near a minimum. For a step of a scan y is what it changes its carry by.

    Args:
      branches: what `find_branches` found.
      loss_fn: (params, batch) -> scalar, a loss that calls the analysed function once.
      params: the parameters that were analysed, as arrays.
      batches: one batch or more, any iterable; each counts alike.

    Returns:
      Branch name -> score, larger = keep.

    Raises:
      ValueError: if there is no batch, the loss is not a scalar or does not contain the branches, or `params` are
        not those that were analysed.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"f": jnp.eye(2), "g": 3 * jnp.eye(2), "head": jnp.ones((2, 1))}
      >>> def fn(p, x):
      ...     x = x + x @ p["f"]
      ...     return (x + x @ p["g"]) @ p["head"]
      >>> x = jnp.ones((1, 2))
      >>> loss_fn = lambda p, x: fn(p, x).mean()  # (1 + f) * (1 + g) * 2
      >>> jp.surgery.branch_taylor(jp.find_branches(fn, params, x), loss_fn, params, [x])
      {'f': 8.0, 'g': 12.0}

    References:
      Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, arXiv:1906.10771 (the gate
      formulation).
    """
    names, batches = branches.keys(), listed(batches)
    gradient = jax.jit(jax.grad(gated_loss(branches, names, loss_fn, params, "branch_taylor")))
    ones, arrays = np.ones(len(names), np.float32), arrays_of(params)
    of_batches = [np.asarray(gradient(ones, arrays, batch), np.float64) for batch in batches]
    found = np.mean(np.abs(of_batches), axis=0)
    return {name: float(score) for name, score in zip(names, found, strict=True)}
