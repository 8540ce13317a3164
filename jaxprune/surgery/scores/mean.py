"""Mean of the scores of units over several batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxprune.surgery.scores._unit_scores import UnitScores


def mean_scores(
    score: Callable[..., UnitScores],
    batches: Iterable[Any],
    weight: Callable[..., float] | None = None,
) -> UnitScores:
    r"""Mean of the scores of all batches: \( s_i = \sum_b v_b s_i^{(b)} / \sum_b v_b \).

    For scores from gradients the scores are averaged, not the gradients, since gradients cancel near a minimum. The
    mean of `taylor_scores` of each batch is the mean squared change of the loss; with batches of one sample it is
    the empirical Fisher information of the units.

    Args:
      score: function of the inputs of a batch that returns `UnitScores`.
      batches: any iterable of tuples of inputs `(x, ...)` of `score`; a batch that is not a tuple is its only input.
      weight: function of the inputs of a batch that returns its weight, such as the number of its samples; None
        gives all batches the same weight.

    Returns:
      For each group a float64 array of shape (group.size,).

    Raises:
      ValueError: if there is no batch, if the scores of the batches have different groups or sizes, or if a weight
        is not a positive number.
      TypeError: if `score` does not return `UnitScores`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[3.0], [0.5]])}
      >>> fn = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]
      >>> loss = lambda p, x, y: jnp.mean(fn(p, x) - y)
      >>> groups = jp.find_groups(fn, params, jnp.ones((1, 1)))
      >>> def score(x, y):
      ...     return jp.surgery.taylor_scores(groups, params=params, gradients=jax.grad(loss)(params, x, y))
      >>> batches = [(jnp.ones((1, 1)), jnp.zeros((1, 1))), (jnp.zeros((2, 1)), jnp.zeros((2, 1)))]
      >>> jp.surgery.mean_scores(score, batches)["down[0]"]  # (36, 4) and (0, 0)
      array([18.,  2.])
      >>> jp.surgery.mean_scores(score, batches, weight=lambda x, y: len(x))["down[0]"].round(2)
      array([12.  ,  1.33])

    References:
      Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, arXiv:1906.10771.
    """
    sums: dict[str, np.ndarray] = {}
    total = 0.0
    for i, batch in enumerate(batches):
        inputs = batch if isinstance(batch, tuple) else (batch,)
        found = score(*inputs)
        if not isinstance(found, UnitScores):
            raise TypeError(
                f"`score` must return UnitScores for a batch, got {type(found).__name__} for batch {i}. "
                "`jp.surgery.unit_scores(groups, params, scores)` makes them from a tree of scores."
            )
        of_batch = 1.0 if weight is None else float(weight(*inputs))
        if not (np.isfinite(of_batch) and of_batch > 0):
            raise ValueError(f"`weight` must return positive numbers, got {of_batch} for batch {i}.")
        here = {name: np.asarray(scores, np.float64) for name, scores in found.by_group.items()}
        before = sums or {name: np.zeros_like(scores) for name, scores in here.items()}
        if {name: x.shape for name, x in here.items()} != {name: x.shape for name, x in before.items()}:
            raise ValueError(
                f"`score` must return the same groups for every batch, got others for batch {i}."
            )
        sums = {name: before[name] + of_batch * scores for name, scores in here.items()}
        total += of_batch
    if not total:
        raise ValueError(
            "`batches` must have at least one batch. A batch is a tuple of inputs, or one input."
        )
    return UnitScores({name: scores / total for name, scores in sums.items()})
