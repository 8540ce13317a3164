"""Structured optimal brain surgery: the error that remains once units are removed and the kept ones are refitted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from jaxprune.calibration import SparseGPT
from jaxprune.calibration.methods.method import over_groups
from jaxprune.params import PyTree
from jaxprune.statistics import Statistics
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.scores._unit_scores import UnitScores
from jaxprune.surgery.scores.consumers import Consumer, consumers_of
from jaxprune.surgery.scores.entries import arrays_of

_BLOCK = 64  # number of removed inputs after which the inverse and the weights are updated


def obs_scores(groups: Groups, params: PyTree, stats: Statistics, damping: float = 0.01) -> UnitScores:
    r"""Reconstruction error after units have been removed greedily up to this one and the rest refitted.

    Let $H = X^T X$ + damping for the inputs X of a weight W. Removing the units S, as rows of W, costs
    $\operatorname{tr}(W_S^T [(H^{-1})_{SS}]^{-1} W_S)$ once the kept rows are refitted. The cheapest unit is
    removed, $H^{-1}$ and W are updated for the kept rows, and this repeats until the last unit. The score of a unit
    is the total error once it is removed, relative to $\|X W\|^2$ and averaged over its downstream weights. Scores
    therefore ascend in the order of removal, and a plan of any sparsity removes the units that the search removed
    first. `jp.compensate` then does the refit. Inputs that are always 0 are removed first.

    With `scope="global"` pass `normalize=None` to `plan_removal`: all groups then lose units up to the same
    relative error.

    Args:
      groups: the groups that `find_groups` returned.
      params: the parameters that were analysed, as arrays.
      stats: statistics from `jp.calibrate(fn, params, batches, moments="full")` on these parameters; only weights
        that have statistics count.
      damping: number that is added to the diagonal of $X^T X$, relative to each of its entries.

    Returns:
      A float64 array of shape (group.size,) for each group whose units are inputs of a weight with
      statistics. `plan_removal` requires that the other groups are excluded.

    Raises:
      ValueError: if the statistics have only the diagonal, or belong to other parameters; if `damping` is negative;
        if no group has a downstream weight with statistics.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"up": jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]), "down": jnp.array([[2.0], [1.0], [3.0]])}
      >>> fn = lambda p, x: (x @ p["up"]) @ p["down"]  # its last unit is the sum of the other two
      >>> x = jnp.eye(2)
      >>> groups = jp.find_groups(fn, params, x)
      >>> stats = jp.calibrate(fn, params, [x], moments="full")
      >>> # 5 x_0 + 4 x_1: free without the second unit, then 4.5 (x_0 + x_1) leaves 0.5 of 41
      >>> jp.surgery.obs_scores(groups, params, stats, damping=1e-4)["down[0]"].round(2)
      array([0.01, 0.  , 1.  ])

    References:
      Kurtic, Frantar, Alistarh, ZipLM: Inference-Aware Structured Pruning of Language Models, 2023,
      arXiv:2302.04089.
      Frantar, Singh, Alistarh, Optimal Brain Compression, 2022, arXiv:2208.11580.
    """
    if not damping >= 0:
        raise ValueError(f"`damping` must not be negative, got {damping!r}.")
    arrays = arrays_of(groups, params)
    _check(arrays, stats)
    out = {}
    for group in groups:
        consumers = consumers_of(groups, group, stats)
        if consumers:
            out[group.name] = _scores(group.size, consumers, arrays, damping)
    if not out and len(groups):
        raise ValueError("`stats` have no weight that multiplies the units of a group.")
    return UnitScores(out)


def _check(arrays: dict[str, Any], stats: Statistics) -> None:
    for path, of_weight in stats.items():
        if path not in arrays or np.shape(arrays[path]) != of_weight.shape:
            raise ValueError(
                f"`stats` belong to other parameters: they have {path!r} of shape {of_weight.shape}."
            )
        if not all(m.is_full for m in of_weight.moments):
            raise ValueError("`stats` must have the full X^T X. Call `jp.calibrate` with `moments='full'`.")


class _Rows(NamedTuple):
    """State of the search for weights with the same inputs, all scaled to inputs of unit norm."""

    inverse: jax.Array  # (inputs, inputs), of X^T X of the kept inputs
    weights: jax.Array  # (inputs, outputs), refitted to the kept inputs
    inputs: jax.Array  # (units, inputs of a unit)


class _Changes(NamedTuple):
    """Changes by removals since the last update: inverse - factors @ factors.T, weights - factors @ gains."""

    factors: jax.Array  # (inputs, removed)
    gains: jax.Array  # (removed, outputs)
    blocks: (
        jax.Array
    )  # (units, inputs of a unit, inputs of a unit): diagonal blocks of the inverse, up to date
    squares: jax.Array  # the same blocks of weights @ weights.T


def _scores(size: int, consumers: Sequence[Consumer], arrays: dict[str, Any], damping: float) -> np.ndarray:
    alike: dict[Any, list[Consumer]] = {}
    for consumer in consumers:
        key = id(consumer.moments.second), consumer.place, consumer.inputs.tobytes()
        alike.setdefault(key, []).append(consumer)
    kinds: dict[Any, list[_Rows]] = {}
    for same in alike.values():
        rows = _rows(same, arrays, damping)
        kinds.setdefault(tuple(x.shape for x in rows), []).append(rows)
    stacked = [jax.tree.map(lambda *x: jnp.stack(x), *rows) for rows in kinds.values()]
    steps = max(1, _BLOCK // max(rows.inputs.shape[2] for rows in stacked))
    order, costs = removals(stacked, size, min(steps, size))
    order, costs = np.asarray(order), np.asarray(costs, np.float64)
    scores = np.empty(size)
    # Scores ascend even if a removal costs nothing, so that the order of removal can be read off the scores.
    scores[order] = np.cumsum(np.maximum(costs, 0) / len(consumers) + 1e-12)
    return scores


def _rows(consumers: Sequence[Consumer], arrays: dict[str, Any], damping: float) -> _Rows:
    first = consumers[0]
    gram, norms = with_unit_diagonal(first.moments.xtx()[first.place])
    inverse = _inverse(SparseGPT(damping=damping).factorize(gram))
    weights = [c.matrix.of(np.asarray(arrays[c.path], np.float32))[c.place] for c in consumers]
    scaled = jnp.concatenate([_unit_output(jnp.asarray(w), gram, norms) for w in weights], axis=1)
    return _Rows(inverse, scaled, jnp.asarray(first.inputs))


@jax.jit
def with_unit_diagonal(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X^T X of inputs scaled to unit norm, with 1 for inputs that are always 0, and the norms of the inputs."""
    diagonal = jnp.diagonal(gram)
    dead = diagonal <= 0
    norms = jnp.sqrt(jnp.where(dead, 0.0, diagonal))
    scale = jnp.where(dead, 0.0, 1 / jnp.where(dead, 1.0, norms))
    return gram * scale[:, None] * scale[None, :] + jnp.diag(dead.astype(gram.dtype)), norms


@jax.jit
def _inverse(factor: jax.Array) -> jax.Array:
    return _multiply(factor.T, factor)


@jax.jit
def _unit_output(w: jax.Array, gram: jax.Array, norms: jax.Array) -> jax.Array:
    """The weights for scaled inputs, scaled to ||X W|| = 1; weights of inputs that are always 0 are 0."""
    w = w * norms[:, None]
    energy = jnp.sum(w * _multiply(gram, w))
    return w * lax.rsqrt(jnp.where(energy > 0, energy, 1.0))


@functools.partial(jax.jit, static_argnames=("size", "block"))
def removals(kinds: list[_Rows], size: int, block: int) -> tuple[jax.Array, jax.Array]:
    """The units in the order of their removal, and the cost of each.

    Each entry of `kinds` has rows of one shape, stacked along a leading axis.
    """

    def remove_block(carry):
        kinds, gone, order, costs, done = carry
        changes = [over_groups(functools.partial(_begin, block=block))(rows) for rows in kinds]

        def remove(step, carry):
            changes, gone, order, costs = carry
            each = [over_groups(_costs)(rows, change) for rows, change in zip(kinds, changes, strict=True)]
            cost = jnp.where(gone, jnp.inf, sum(jnp.sum(e, axis=0) for e in each))
            unit = jnp.argmin(cost).astype(jnp.int32)
            without = functools.partial(_without, unit=unit, step=step)
            changes = [over_groups(without)(rows, c) for rows, c in zip(kinds, changes, strict=True)]
            at = done + step
            return changes, gone.at[unit].set(True), order.at[at].set(unit), costs.at[at].set(cost[unit])

        steps = jnp.minimum(block, size - done)
        changes, gone, order, costs = lax.fori_loop(0, steps, remove, (changes, gone, order, costs))
        kinds = [over_groups(_written)(rows, change) for rows, change in zip(kinds, changes, strict=True)]
        return kinds, gone, order, costs, done + steps

    start = (
        kinds,
        jnp.zeros(size, bool),
        jnp.zeros(size, jnp.int32),
        jnp.zeros(size, jnp.float32),
        jnp.zeros((), jnp.int32),
    )
    _, _, order, costs, _ = lax.while_loop(lambda carry: carry[4] < size, remove_block, start)
    return order, costs


def _begin(rows: _Rows, block: int) -> _Changes:
    n, outputs = rows.weights.shape
    columns = block * rows.inputs.shape[1]
    of_units = rows.weights[rows.inputs]
    return _Changes(
        jnp.zeros((n, columns), jnp.float32),
        jnp.zeros((columns, outputs), jnp.float32),
        rows.inverse[rows.inputs[:, :, None], rows.inputs[:, None, :]],
        jnp.einsum("kio,kjo->kij", of_units, of_units, precision=lax.Precision.HIGHEST),
    )


def _costs(rows: _Rows, changes: _Changes) -> jax.Array:
    """tr(W_u^T [(H^-1)_uu]^-1 W_u) of each unit, (units,)."""
    if rows.inputs.shape[1] == 1:
        return changes.squares[:, 0, 0] / changes.blocks[:, 0, 0]
    return jnp.trace(jnp.linalg.solve(changes.blocks, changes.squares), axis1=1, axis2=2)


def _without(rows: _Rows, changes: _Changes, unit: jax.Array, step: jax.Array) -> _Changes:
    """The changes after one more unit is removed."""
    factors, gains, blocks, squares = changes
    own = rows.inputs[unit]
    columns = rows.inverse[:, own] - _multiply(factors, factors[own].T)
    lower = jnp.linalg.cholesky(columns[own])
    factor = solve_triangular(lower, columns.T, lower=True).T  # factor @ factor.T leaves the inverse
    gain = solve_triangular(lower, rows.weights[own] - _multiply(factors[own], gains), lower=True)
    image = _multiply(rows.weights, gain.T) - _multiply(factors, _multiply(gains, gain.T))  # weights @ gain.T
    f, a = factor[rows.inputs], image[rows.inputs]
    crossed = _outer(a, f)
    squares = (
        squares - crossed - crossed.transpose(0, 2, 1) + _outer(_multiply(f, _multiply(gain, gain.T)), f)
    )
    at = step * len(own)
    return _Changes(
        lax.dynamic_update_slice_in_dim(factors, factor, at, axis=1),
        lax.dynamic_update_slice_in_dim(gains, gain, at, axis=0),
        blocks - _outer(f, f),
        squares,
    )


def _written(rows: _Rows, changes: _Changes) -> _Rows:
    factors, gains, _, _ = changes
    return rows._replace(
        inverse=rows.inverse - _multiply(factors, factors.T), weights=rows.weights - _multiply(factors, gains)
    )


def _outer(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("kij,klj->kil", a, b, precision=lax.Precision.HIGHEST)


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
