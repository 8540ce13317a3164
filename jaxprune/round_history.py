"""The history of an experiment: a row for each training."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.lookahead import weights_of
from jaxprune.masking.share import kept_per_leaf, total_count
from jaxprune.params import PyTree


class Round(NamedTuple):
    """One row of the history: a training under one set of masks.

    round: 0 is the dense training; sparsity: float32, pruned / prunable; kept: number of kept prunable weights
    (int32; float32 beyond 2^31); metrics: those of the last training step; evaluation: `evaluate(state)` at the
    end; curve: `evaluate(state)` every `every` steps, stacked (NaN, or 0 for integers, at steps that the round
    did not run); masks: with `keep_masks` only.
    """

    round: jax.Array
    sparsity: jax.Array
    kept: jax.Array
    metrics: PyTree
    evaluation: PyTree
    curve: PyTree
    masks: PyTree


def row_of(
    round: jax.Array,
    params: PyTree,
    masks: PyTree,
    metrics: PyTree,
    evaluation: PyTree,
    curve: PyTree,
    shown: PyTree,
) -> Round:
    """The row of a training under these masks; `shown` are those to store."""
    params = weights_of(params)
    kept, total = kept_per_leaf(params, weights_of(masks))
    sizes = [jnp.size(w) for w in jax.tree.leaves(params)]
    most = sum(size for size, n in zip(sizes, total, strict=True) if n is not None)
    left = total_count([k for k in kept if k is not None], jnp.int32 if most < 2**31 else jnp.float32)
    # 1 - kept / whole would lose the digits of a high density's small sparsity.
    pruned = total_count([n - k for k, n in zip(kept, total, strict=True) if n is not None])
    whole = total_count([n for n in total if n is not None])
    return Round(round, pruned / whole, left, metrics, evaluation, curve, shown)
