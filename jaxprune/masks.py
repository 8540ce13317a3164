"""Masks: from scores to keep-masks, their application, and what share is pruned."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.allocation import Scope, check_least_kept, check_scope, counts_to_prune, least_kept, shares_of
from jaxprune.input_axes import with_input_axes
from jaxprune.params import PyTree, flatten_with_paths, is_kept_whole, mask_leaves, prunable_leaves
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.units import masks_from_counts, unit_counts


def make_masks(
    scores: PyTree,
    sparsity: Any,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    prior: PyTree | None = None,
    minimum: int | float = 0,
) -> PyTree:
    """Keep-masks that prune exactly `round(sparsity * n)` of n units, those of the lowest scores.

    Units of equal score go in the order of the leaves, then of their flat index. What `prior` has pruned
    goes first and counts. The masks have the structure of `scores`; a leaf is a bool array that broadcasts
    to its parameter (True = keep), or the plain `True` where `where` is False.

    Args:
      scores: pytree of float arrays shaped like the parameters, larger = keep, inf = keep as long as anything
        else is left; a unit that holds an inf has the score inf. Leaves of several dtypes, and
        float64, are compared as float32.
      sparsity: share of the units to prune in all, in [0, 1): a float, a scalar array (also traced), or a
        tree of floats like `scores` (an allocation: each leaf its own share, whatever the scope).
      scope: "global" compares the units of all leaves, "local" takes the same share of each leaf.
      structure: what a unit is: `Unstructured()`, `NM(n, m)`, `Block(shape)`, `Channels()` or `Layers()`.
      where: tree of bools (or a prefix of one, or a function that gives it), the leaves to prune; None for
        `prunable(scores)`.
      prior: masks whose pruned units stay pruned.
      minimum: units that every leaf to prune keeps at least (a leaf with fewer keeps all): a whole number, or a
        float in (0, 1) for that share of each leaf, rounded up. The highest scores of each leaf stay, the
        others are compared as before, so the number pruned in all is the same.

    Returns:
      Tree like `scores` of masks.

    Raises:
      ValueError: a sparsity outside [0, 1), or one that `minimum` contradicts (where it is a known number; a
        traced one stops at the minimum); trees that don't match; NaN or -inf among the scores (eagerly; under
        `jit` they are pruned first, NaN before -inf); a leaf that the structure can't cut; nothing to prune.
      TypeError: a leaf to prune that is not a floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"kernel": jnp.array([[0.5, -2.0], [0.1, 1.0]]), "bias": jnp.zeros(2)}
      >>> jp.make_masks(jp.scores.magnitude(params), 0.5)
      {'bias': True, 'kernel': Array([[False,  True],
             [False,  True]], dtype=bool)}

    References:
      Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015, arXiv:1506.02626.
    """
    check_scope(scope, structure)
    paths, leaves, _ = flatten_with_paths(scores)
    chosen = prunable_leaves(scores, where)
    structure = with_input_axes(structure, scores)
    for i in chosen:
        _check_scores(paths[i], leaves[i])
        structure.check(paths[i], leaves[i].shape)
    shares = shares_of(sparsity, scores, chosen)
    check_patterns(structure, shares, [paths[i] for i in chosen])
    units = unit_counts(structure, leaves, chosen)
    counts = counts_to_prune(shares, units, scope)
    least = least_kept(minimum, units)
    by_leaf = counts_to_prune(shares, units, "local") if isinstance(structure, NM) else counts
    check_least_kept(by_leaf, units, least, [paths[i] for i in chosen])
    return masks_from_counts(scores, counts, structure, chosen, prior, least)


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
    """Parameters with pruned weights at zero: `where(mask, w, 0)`, so that NaN under a mask becomes 0.

    Args:
      params: pytree of arrays.
      masks: its masks.

    Returns:
      Tree like `params`, dtypes kept.

    Raises:
      ValueError: trees that don't match, or a mask that doesn't broadcast to its parameter.
      TypeError: a mask that is not bool.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.apply_masks({"w": jnp.array([1.0, jnp.nan])}, {"w": jnp.array([True, False])})
      {'w': Array([1., 0.], dtype=float32)}
    """
    _, leaves, treedef = flatten_with_paths(params)
    return jax.tree.unflatten(
        treedef, [masked_leaf(w, mask) for w, mask in zip(leaves, mask_leaves(params, masks), strict=True)]
    )


def sparsity(params: PyTree, masks: PyTree) -> Any:
    """Share of the prunable weights that is pruned: `pruned / prunable`; 0 where nothing is prunable.

    Leaves whose mask is a scalar `True` are not prunable and count on neither side; a scalar `False` prunes
    its whole leaf.

    Args:
      params: pytree of arrays (or `jax.ShapeDtypeStruct`s).
      masks: its masks.

    Returns:
      A Python float, from exact counts; a float32 scalar under `jit`.

    Raises:
      ValueError: trees that don't match, or a mask that doesn't broadcast to its parameter.

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
    """The sum of counts, some of them traced: what is known is summed exactly."""
    known = sum(count for count in counts if isinstance(count, int))
    traced = (jnp.asarray(count, dtype) for count in counts if not isinstance(count, int))
    return sum(traced, jnp.asarray(known, dtype))


def kept_per_leaf(params: PyTree, masks: PyTree) -> tuple[list[Any], list[Any]]:
    """Kept weights and size of each leaf; None for a leaf that is not prunable.

    Kept counts are Python ints, exact at any size; under `jit` float32 scalars for leaves beyond 2^31. A
    traced scalar mask decides on the size too: where it is True, the leaf is not prunable and counts as 0.
    """
    _, leaves, _ = flatten_with_paths(params)
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


def masked_leaf(w: Any, mask: Any) -> Any:
    """`where(mask, w, 0)`, with nothing to do for a leaf that is not prunable."""
    if isinstance(mask, bool | np.bool_) and mask:
        return w
    return jnp.where(mask, w, jnp.zeros((), jnp.asarray(w).dtype))


def _check_scores(path: str, scores: jax.Array) -> None:
    """Raises ValueError for NaN or -inf among scores, where their values are known. inf means keep."""
    if isinstance(scores, Tracer) or not hasattr(scores, "dtype") or scores.size == 0:
        return
    # Some 8-bit floats have no inf.
    wide = scores.astype(jnp.float32) if scores.dtype.itemsize < 4 else scores
    fine = jnp.all(wide > -jnp.inf)  # false for NaN
    if not isinstance(fine, Tracer) and not bool(fine):
        nans = int(jnp.isnan(scores).sum())
        raise ValueError(
            f"`scores` must be numbers, or inf for what is to be kept, got {nans} NaN and "
            f"{int((scores == -jnp.inf).sum())} -inf of {scores.size} at {path!r}."
        )


def check_patterns(structure: Structure, shares: Any, paths: list[str]) -> None:
    """Raises ValueError for a known sparsity, or one of a leaf's, that is not an N:M pattern's (or 0)."""
    if not isinstance(structure, NM):
        return
    for share, path in zip(shares if isinstance(shares, list) else [shares] * len(paths), paths, strict=True):
        _check_pattern(structure, share, path)


def _check_pattern(structure: NM, share: Any, path: str) -> None:
    if isinstance(share, Tracer):
        return  # a schedule's value: it may be anywhere below the pattern's
    if float(share) != 0 and not math.isclose(float(share), structure.sparsity, rel_tol=1e-6):
        raise ValueError(
            f"`sparsity` must be {structure.sparsity:g} for NM({structure.n}, {structure.m}), which keeps "
            f"{structure.n} of every {structure.m}, got {share} at {path!r}. (`gradual` may pass smaller "
            "ones.)"
        )
