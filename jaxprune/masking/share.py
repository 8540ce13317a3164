"""The fraction of weights that is pruned."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.params import PyTree, is_kept_whole, mask_leaves


def sparsity(params: PyTree, masks: PyTree) -> Any:
    """Fraction of the prunable weights that is pruned: `pruned / prunable`; 0 if nothing is prunable.

    A leaf whose mask is a scalar `True` is not prunable and counts in neither number. A scalar `False` prunes
    the whole leaf.

    Args:
      params: pytree of arrays (or `jax.ShapeDtypeStruct`s).
      masks: the masks of these parameters.

    Returns:
      A Python float from exact counts; under `jit` a float32 scalar.

    Raises:
      ValueError: if the trees don't match, or a mask doesn't broadcast to its parameter.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}
      >>> jp.sparsity(params, {"kernel": jnp.array([[True, False, True, True]]), "bias": True})
      0.25
    """
    kept, total = kept_per_leaf(params, masks)
    whole = [n for n in total if n is not None]
    pruned = [n - k for k, n in zip(kept, total, strict=True) if n is not None]
    if all(isinstance(count, int) for count in pruned + whole):
        return sum(pruned) / sum(whole) if sum(whole) else 0.0
    return total_count(pruned) / jnp.maximum(total_count(whole), 1)


def total_count(counts: list[Any], dtype: Any = jnp.float32) -> jax.Array:
    """The sum of counts, some of them traced: the known ones are summed exactly."""
    known = sum(count for count in counts if isinstance(count, int))
    traced = (jnp.asarray(count, dtype) for count in counts if not isinstance(count, int))
    return sum(traced, jnp.asarray(known, dtype))


def kept_per_leaf(params: PyTree, masks: PyTree) -> tuple[list[Any], list[Any]]:
    """Number of kept weights and size of each leaf; None for a leaf that is not prunable.

    The numbers are Python ints, exact at any size; under `jit` they are float32 scalars for leaves beyond 2^31.
    A traced scalar mask decides the size too: if it is True, the leaf is not prunable and counts as 0.
    """
    leaves = jax.tree.leaves(params)
    kept, total = [], []
    for w, mask in zip(leaves, mask_leaves(params, masks), strict=True):
        if is_kept_whole(mask):
            kept.append(None)
            total.append(None)
            continue
        size = math.prod(jnp.shape(w))
        wide = jnp.float32 if size >= 2**31 else jnp.int32
        if jnp.ndim(mask) == 0:
            kept.append(0)
            total.append(jnp.where(mask, 0, jnp.asarray(size, wide)) if isinstance(mask, Tracer) else size)
            continue
        mask = jnp.asarray(mask)
        repeats = size // mask.size if mask.size else 1
        if isinstance(mask, Tracer):
            kept.append(jnp.sum(mask, dtype=wide) * repeats)
        elif mask.size < 2**31:
            kept.append(int(jnp.sum(mask, dtype=jnp.int32)) * repeats)
        else:
            # A row's count fits 32 bits, their sum need not: it is taken on the host.
            rows = jnp.sum(mask, axis=-1, dtype=jnp.int32)
            kept.append(int(np.asarray(rows).sum(dtype=np.int64)) * repeats)
        total.append(size)
    return kept, total
