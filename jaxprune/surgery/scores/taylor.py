"""First-order Taylor score: the change of the loss if a unit's parameters are set to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.deprecated import warn_renamed
from jaxprune.params import PyTree, aligned, flatten_with_paths, is_float_array
from jaxprune.scores._gradients import checked_loss, split_floats
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.scores._unit_scores import UnitScores
from jaxprune.surgery.scores.entries import arrays_of, summed_over_units
from jaxprune.surgery.scores.mean import mean_scores


def taylor_scores(
    groups: Groups,
    loss_fn: Callable[[PyTree, Any], Any] | None = None,
    params: PyTree | None = None,
    batches: Iterable[Any] | None = None,
    *,
    gradients: PyTree | None = None,
) -> UnitScores:
    r"""Squared first-order change of the loss: \( s_i = (\sum_w w \, \partial L / \partial w)^2 \).

    The sum is over the entries w of all member slices of unit i, and the sum is squared. To first order this is the
    squared change of the loss if all of the unit's parameters are set to zero together. With several batches the
    scores are averaged, not the gradients, since gradients cancel near a minimum. Weights before a normalization
    layer contribute 0, because the loss does not change with their scale.

    Args:
      groups: the groups that `find_groups` returned.
      loss_fn: function (params, batch) -> scalar, as for `jp.scores.taylor`.
      params: the parameters that were analysed, as arrays.
      batches: any iterable of one or more batches; each batch has the same weight.
      gradients: instead of `loss_fn` and `batches`, the gradients of the loss on one batch, as a tree like `params`.
        Leaves that are None or not floating-point (such as the float0 gradients of integers) do not count.

    Returns:
      For each group a float64 array of shape (group.size,).

    Raises:
      ValueError: if `params` has other paths or shapes than the parameters that the groups were found with; if
        `gradients` is not like `params`; if there is no batch; if the loss is not a scalar; if neither batches nor
        gradients are given, or both.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[3.0], [0.5]])}
      >>> fn = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> groups = jp.find_groups(fn, params, jnp.ones((1, 1)))
      >>> loss_fn = lambda p, x: fn(p, x).sum()
      >>> jp.surgery.taylor_scores(groups, loss_fn, params, [jnp.ones((1, 1))])["down[0]"]  # (1 * 3 + 3 * 1)^2, ...
      array([36.,  4.])
      >>> gradients = jax.grad(loss_fn)(params, jnp.ones((1, 1)))
      >>> jp.surgery.taylor_scores(groups, params=params, gradients=gradients)["down[0]"]
      array([36.,  4.])

    References:
      Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, arXiv:1906.10771 (the
      gate formulation: the square of the sum over a unit).
    """
    if loss_fn is not None and batches is None:  # taylor_scores(groups, params, gradients), as it once was
        warn_renamed(
            "`taylor_scores(groups, params, gradients)`",
            "`taylor_scores(groups, params=params, gradients=gradients)`",
        )
        loss_fn, params, gradients = None, loss_fn, params if gradients is None else gradients
    if gradients is not None and loss_fn is None and batches is None:
        return _of_gradients(groups, params, gradients)
    if gradients is not None or loss_fn is None or batches is None:
        raise ValueError(
            "taylor_scores needs `loss_fn` and `batches`, or `gradients`, in addition to `params`."
        )
    floats, join = split_floats(params)
    gradient = jax.jit(jax.grad(checked_loss(loss_fn, join)))

    def of_batch(batch: Any) -> UnitScores:
        return _of_gradients(groups, params, join(gradient(floats, batch)))

    return mean_scores(of_batch, ((batch,) for batch in batches))


def _of_gradients(groups: Groups, params: PyTree, gradients: PyTree) -> UnitScores:
    arrays = arrays_of(groups, params)
    try:
        leaves = jax.tree.structure(params).flatten_up_to(gradients)
    except ValueError:
        leaves = aligned(params, gradients, "gradients")
    products: dict[str, Any] = {}
    for path, gradient in zip(flatten_with_paths(params)[0], leaves, strict=True):
        if path in arrays and is_float_array(gradient) and is_float_array(arrays[path]):
            if np.shape(gradient) != np.shape(arrays[path]):
                raise ValueError(
                    f"`gradients` must have the shapes of `params`: {np.shape(arrays[path])} at {path!r}, "
                    f"got {np.shape(gradient)}."
                )
            products[path] = jnp.asarray(arrays[path], jnp.float32) * jnp.asarray(gradient, jnp.float32)
    return UnitScores({name: total**2 for name, total in summed_over_units(groups, products).items()})
