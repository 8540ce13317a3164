"""Fisher information: the diagonal of optimal brain damage."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree
from jaxprune.scores._gradients import batches_of, checked_loss, split_floats
from jaxprune.scores._unit_sum import float_paths, spread, unit_sum
from jaxprune.structures import LeafStructure, Unstructured
from jaxprune.whole_numbers import check_whole


def fisher(
    loss_fn: Callable[[PyTree, Any], Any],
    params: PyTree,
    *batch: Any,
    batches: Iterable[Any] | None = None,
    structure: LeafStructure = Unstructured(),
    chunk: int = 32,
) -> PyTree:
    r"""Second-order change of the loss when a weight is pruned: \(w^2\,\frac1N\sum_n g_n^2\), \(g_n\) of sample n.

    The mean of the squared gradients estimates the diagonal of the Hessian of a log-likelihood. The square of
    a batch's mean gradient would not. The score of a unit is \(\frac1N\sum_n (\sum w\,g_n)^2\). The factor 1/2
    of the papers is left out.

    Args:
      loss_fn: (params, batch) -> scalar, the mean over the batch. It is called with one sample at a time, as a
        batch of one, so it must not depend on other samples (no BatchNorm in training mode).
      params: pytree of arrays; leaves that are not floating-point arrays are returned unchanged.
      *batch: pytrees of arrays whose first axis is the sample. All samples have equal weight.
      batches: the same as one iterable of batches, as `jp.calibrate` takes it: pass one of the two.
      structure: how weights form units.
      chunk: number of samples whose gradients are in memory at once (by `vmap`); a loop goes over the chunks.

    Returns:
      Tree like `params` of float32 scores. Every weight has the score of its unit.

    Raises:
      ValueError: if there is no batch or no sample, batches are in both places, the leaves of a batch differ in
        the length of their first axis, `chunk` is below 1, or the loss is not a scalar.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> loss_fn = lambda params, x: jnp.mean(x @ params["w"])  # the gradient of a sample is the sample
      >>> jp.scores.fisher(loss_fn, params, jnp.array([[1.0, 1.0], [-1.0, 1.0]]))["w"]
      Array([1., 4.], dtype=float32)

    References:
      LeCun, Denker, Solla, Optimal Brain Damage, 1990.
      Theis, Korshunova, Tejani, Huszár, Faster gaze prediction with dense networks and Fisher pruning, 2018,
      arXiv:1801.05787.
    """
    check_whole(chunk=chunk)
    given = batches_of(batch, batches)
    floats, join = split_floats(params)
    loss, paths = checked_loss(loss_fn, join), float_paths(params)
    weights = [w.astype(jnp.float32) for w in floats]

    def squares(sample: Any) -> list[jax.Array]:
        grads = jax.grad(loss)(floats, jax.tree.map(lambda x: x[None], sample))
        products = [w * g.astype(jnp.float32) for w, g in zip(weights, grads, strict=True)]
        return [jnp.square(unit_sum(p, x, structure)) for p, x in zip(paths, products, strict=True)]

    def sums_over(samples: Any) -> list[jax.Array]:
        return [jnp.sum(x, axis=0) for x in jax.vmap(squares)(samples)]

    parts, count = [], 0
    for samples in given:
        n = _samples(samples)
        whole = n // chunk * chunk
        if whole:
            chunks = jax.tree.map(lambda x, m=whole: x[:m].reshape(-1, chunk, *x.shape[1:]), samples)
            zeros = [jnp.zeros_like(unit_sum(p, w, structure)) for p, w in zip(paths, weights, strict=True)]
            parts.append(jax.lax.scan(lambda sums, c: (_add(sums, sums_over(c)), None), zeros, chunks)[0])
        if whole < n:
            parts.append(sums_over(jax.tree.map(lambda x, m=whole: x[m:], samples)))
        count += n
    means = [total / count for total in functools.reduce(_add, parts)]
    scores = [spread(p, m, w.shape, structure) for p, m, w in zip(paths, means, floats, strict=True)]
    return join(scores)


def _samples(batch: Any) -> int:
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(batch)]
        raise ValueError(
            f"`batches` must hold arrays with the same number of samples along axis 0, got shapes {shapes}."
        )
    return lengths.pop()[0]


def _add(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(a, b, strict=True)]
