"""Masks: from scores to keep-masks, their application, and what share is pruned."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxprune.params import PyTree, flatten_with_paths, is_float_array, prunable
from jaxprune.selection import count_to_prune, nm_keep, select
from jaxprune.structures import NM, Layers, Structure, Unstructured

Scope = Literal["global", "local"]


def make_masks(
    scores: PyTree,
    sparsity: Any,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    prior: PyTree | None = None,
) -> PyTree:
    """Keep-masks that prune exactly `round(sparsity * n)` of n units, those of the lowest scores.

    Units of equal score go in the order of the leaves, then of their flat index. What `prior` has pruned
    goes first and counts. The masks have the structure of `scores`; a leaf is a bool array that broadcasts
    to its parameter (True = keep), or the plain `True` where `where` is False.

    Args:
      scores: pytree of float arrays shaped like the parameters, larger = keep.
      sparsity: share of the units to prune in all, in [0, 1): a float, a scalar array (also traced), or a
        tree of floats like `scores` (an allocation: each leaf its own share, whatever the scope).
      scope: "global" compares the units of all leaves, "local" takes the same share of each leaf.
      structure: what a unit is: `Unstructured()`, `NM(n, m)`, `Block(shape)`, `Channels()` or `Layers()`.
      where: tree of bools, the leaves to prune; None for `prunable(scores)`.
      prior: masks whose pruned units stay pruned.

    Returns:
      Tree like `scores` of masks.

    Raises:
      ValueError: a sparsity outside [0, 1); trees that don't match; NaN or infinite scores (eagerly; under
        `jit` NaN goes first); a leaf that the structure can't cut; nothing to prune.
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
    for i in chosen:
        check_scores(paths[i], leaves[i])
        structure.check(paths[i], leaves[i].shape)
    shares = _shares(sparsity, scores, chosen)
    if isinstance(structure, NM):
        for i, share in zip(
            chosen, shares if isinstance(shares, list) else [shares] * len(chosen), strict=True
        ):
            _check_pattern(structure, share, paths[i])
    units = [math.prod(structure.unit_shape(leaves[i].shape)) for i in chosen]
    counts = counts_to_prune(shares, units, scope)
    return masks_from_counts(scores, counts, structure, chosen, prior)


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
        treedef, [keep(mask, w) for w, mask in zip(leaves, mask_leaves(params, masks), strict=True)]
    )


def sparsity(params: PyTree, masks: PyTree) -> Any:
    """Share of the prunable weights that is pruned: `pruned / prunable`; 0 where nothing is prunable.

    Leaves whose mask is a scalar `True` are not prunable and count on neither side.

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
    whole = sum(n for n in total if n is not None)
    if whole == 0:
        return 0.0
    pruned = [n - k for k, n in zip(kept, total, strict=True) if n is not None]
    if all(isinstance(count, int) for count in pruned):
        return sum(pruned) / whole
    return sum(jnp.asarray(count, jnp.float32) for count in pruned) / whole


def kept_per_leaf(params: PyTree, masks: PyTree) -> tuple[list[Any], list[int | None]]:
    """Kept weights and size of each leaf; None for a leaf that is not prunable.

    Kept counts are Python ints, exact at any size; under `jit` float32 scalars for leaves beyond 2^31.
    """
    _, leaves, _ = flatten_with_paths(params)
    kept, total = [], []
    for w, mask in zip(leaves, mask_leaves(params, masks), strict=True):
        if jnp.ndim(mask) == 0:
            kept.append(None)
            total.append(None)
            continue
        size = math.prod(w.shape)
        repeats = size // mask.size if mask.size else 1
        if isinstance(mask, jax.core.Tracer):
            wide = jnp.float32 if size >= 2**31 else jnp.int32
            kept.append(jnp.sum(mask, dtype=wide) * repeats)
        else:
            # A row's count fits 32 bits, their sum need not: it is taken on the host.
            rows = jnp.sum(mask, axis=-1, dtype=jnp.int32)
            kept.append(int(np.asarray(rows).sum(dtype=np.int64)) * repeats)
        total.append(size)
    return kept, total


# The steps between, shared with the loops that decide their counts ahead of time.


def check_scope(scope: str, structure: Structure) -> None:
    """Raises ValueError for an unknown scope, or one that has no meaning for the structure."""
    if scope not in ("global", "local"):
        raise ValueError(f"`scope` must be 'global' or 'local', got {scope!r}.")
    if isinstance(structure, type) or not callable(getattr(structure, "unit_scores", None)):
        raise TypeError(f"`structure` must be a structure such as Unstructured(), got {structure!r}.")
    if scope == "local" and isinstance(structure, Layers):
        raise ValueError("`scope` must be 'global' for Layers(): layers are compared with each other.")


def prunable_leaves(tree: PyTree, where: PyTree | None) -> list[int]:
    """Positions, in `jax.tree.leaves(tree)`, of the leaves to prune."""
    where = prunable(tree) if where is None else where
    paths, leaves, _ = flatten_with_paths(tree)
    flags = aligned(tree, where, "where")
    chosen = []
    for i, (path, leaf, flag) in enumerate(zip(paths, leaves, flags, strict=True)):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"`where` must hold Python bools, got {flag!r} at {path!r}.")
        if flag:
            if not is_float_array(leaf):
                kind = getattr(leaf, "dtype", type(leaf).__name__)
                raise TypeError(
                    f"`where` is True at {path!r}, which is {kind}: only floating-point arrays can be pruned."
                )
            chosen.append(i)
    if not chosen:
        raise ValueError(
            f"there is nothing to prune: none of the {len(leaves)} leaves is selected. "
            "Name some with `where=jp.prunable(params, include=...)`."
        )
    return chosen


def check_scores(path: str, scores: jax.Array) -> None:
    """Raises ValueError for NaN or infinite scores, where their values are known."""
    if isinstance(scores, jax.core.Tracer) or not hasattr(scores, "dtype") or scores.size == 0:
        return
    finite = jnp.all(jnp.isfinite(scores))
    if not isinstance(finite, jax.core.Tracer) and not bool(finite):
        nans = int(jnp.isnan(scores).sum())
        raise ValueError(
            f"`scores` must be finite, got {nans} NaN and {int(jnp.isinf(scores).sum())} infinite of "
            f"{scores.size} at {path!r}."
        )


def counts_to_prune(shares: Any, units: list[int], scope: Scope) -> Any:
    """Units to prune: one count over all leaves, or a list with one count a leaf."""
    if isinstance(shares, list):
        return [count_to_prune(share, n) for share, n in zip(shares, units, strict=True)]
    if scope == "local":
        return [count_to_prune(shares, n) for n in units]
    return count_to_prune(shares, sum(units))


def masks_from_counts(
    scores: PyTree, counts: Any, structure: Structure, chosen: list[int], prior: PyTree | None
) -> PyTree:
    """Masks that prune given counts of units; a list has one count for each chosen leaf."""
    paths, leaves, treedef = flatten_with_paths(scores)
    priors = [True] * len(leaves) if prior is None else mask_leaves(scores, prior, "prior")
    units, pruned = [], []
    for i in chosen:
        units.append(structure.unit_scores(jnp.asarray(leaves[i])))
        pruned.append(_pruned_units(structure, priors[i], leaves[i].shape))
    if isinstance(structure, NM):
        kept = _select_nm(structure, [paths[i] for i in chosen], units, counts, pruned)
    elif isinstance(counts, list):
        kept = [select([u], count, pruned=[p])[0] for u, count, p in zip(units, counts, pruned, strict=True)]
    else:
        kept = select(units, counts, pruned=pruned)
    masks: list[Any] = [True] * len(leaves)
    for i, keep_units in zip(chosen, kept, strict=True):
        mask = structure.expand(keep_units, leaves[i].shape)
        # A unit that was pruned in part stays pruned in that part.
        masks[i] = mask if jnp.ndim(priors[i]) == 0 else mask & priors[i]
    return jax.tree.unflatten(treedef, masks)


def full_masks(params: PyTree, structure: Structure, chosen: list[int]) -> PyTree:
    """All-keep masks in the shapes that `masks_from_counts` gives; each leaf an array of its own."""
    paths, leaves, treedef = flatten_with_paths(params)
    masks: list[Any] = [jnp.array(True) for _ in leaves]
    for i in chosen:
        structure.check(paths[i], leaves[i].shape)
        if structure.unit_shape(leaves[i].shape) == leaves[i].shape:
            masks[i] = jnp.full_like(leaves[i], True, dtype=bool)  # like the parameter: sharding too
        else:
            masks[i] = structure.expand(
                jnp.ones(structure.unit_shape(leaves[i].shape), bool), leaves[i].shape
            )
    return jax.tree.unflatten(treedef, masks)


def placed_like(mask: jax.Array, w: jax.Array) -> jax.Array:
    """The mask on the devices of its parameter, cut as the parameter is.

    An explicit mesh has it so in the types: a `where` of differently sharded operands is an error there. On
    an automatic mesh only known arrays are moved, under `jit` the compiler places them.
    """
    if mask.ndim == 0:
        return mask
    sharding: Any = jax.typeof(w).sharding
    is_explicit = AxisType.Explicit in getattr(sharding.mesh, "axis_types", ())
    if not isinstance(w, jax.core.Tracer) and isinstance(w.sharding, NamedSharding):
        sharding = w.sharding
    elif not is_explicit:
        return mask
    spec = tuple(sharding.spec) + (None,) * (w.ndim - len(sharding.spec))
    spec = [axis if n == m else None for axis, n, m in zip(spec, w.shape, mask.shape, strict=True)]
    sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.sharding.reshard(mask, sharding) if is_explicit else jax.device_put(mask, sharding)


def keep(mask: Any, w: Any, otherwise: Any = 0) -> Any:
    """`where(mask, w, otherwise)`, with nothing to do for a leaf that is not prunable."""
    if mask is True or (isinstance(mask, np.bool_) and mask):
        return w
    return jnp.where(mask, w, jnp.asarray(otherwise, jnp.asarray(w).dtype))


def mask_leaves(params: PyTree, masks: PyTree, argument: str = "masks") -> list[Any]:
    """Leaves of `masks` in the order of those of `params`, checked against them."""
    paths, leaves, _ = flatten_with_paths(params)
    found = aligned(params, masks, argument)
    for path, w, mask in zip(paths, leaves, found, strict=True):
        if isinstance(mask, bool | np.bool_):
            continue
        if not hasattr(mask, "dtype") or mask.dtype != jnp.bool_:
            kind = getattr(mask, "dtype", type(mask).__name__)
            raise TypeError(f"`{argument}` must hold bool arrays (True = keep), got {kind} at {path!r}.")
        shape = tuple(getattr(w, "shape", ()))
        fits = mask.ndim in (0, len(shape)) and all(
            m in (1, n) for m, n in zip(mask.shape, shape, strict=False)
        )
        if not fits:
            raise ValueError(
                f"`{argument}` must broadcast to the parameters, got shape {mask.shape} at {path!r} "
                f"of shape {shape}."
            )
    return found


def aligned(tree: PyTree, other: PyTree, argument: str) -> list[Any]:
    """Leaves of `other`, which must have the paths of `tree`, in the order of `tree`."""
    paths, _, treedef = flatten_with_paths(tree)
    other_paths, other_leaves, other_treedef = flatten_with_paths(other)
    if treedef == other_treedef or paths == other_paths:
        return other_leaves
    missing = [path for path in paths if path not in set(other_paths)]
    extra = [path for path in other_paths if path not in set(paths)]
    if not missing and not extra:
        by_path = dict(zip(other_paths, other_leaves, strict=True))
        if len(by_path) == len(paths):
            return [by_path[path] for path in paths]
    difference = (
        f"it lacks {missing[0]!r}" if missing else f"it has {extra[0]!r} besides" if extra else "it differs"
    )
    raise ValueError(
        f"`{argument}` must have the tree structure of the parameters, but {difference} "
        f"({len(other_paths)} leaves against {len(paths)})."
    )


def check_fraction(name: str, value: Any, path: str | None = None) -> None:
    """Raises unless a known number is in [0, 1)."""
    at = f" at {path!r}" if path else ""
    if isinstance(value, bool) or not (hasattr(value, "dtype") or isinstance(value, numbers.Real)):
        raise TypeError(f"`{name}` must be a number in [0, 1), got {value!r}{at}.")
    if isinstance(value, jax.core.Tracer):
        return
    shape = getattr(value, "shape", ())
    if shape != ():
        raise ValueError(f"`{name}` must be a scalar, got shape {shape}{at}.")
    number = float(value)
    if not 0 <= number < 1:
        hint = f" It is a fraction: pass {number / 100:g}." if 1 < number < 100 else ""
        raise ValueError(f"`{name}` must be in [0, 1), got {value}{at}.{hint}")


def _shares(sparsity: Any, scores: PyTree, chosen: list[int]) -> Any:
    is_scalar = isinstance(sparsity, numbers.Real) or getattr(sparsity, "ndim", None) == 0
    if is_scalar or isinstance(sparsity, str) or sparsity is None:
        check_fraction("sparsity", sparsity)
        return sparsity
    paths, _, _ = flatten_with_paths(scores)
    shares = aligned(scores, sparsity, "sparsity")
    for i in chosen:
        check_fraction("sparsity", shares[i], paths[i])
    return [shares[i] for i in chosen]


def _pruned_units(structure: Structure, prior: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """Units of which no weight is left."""
    if isinstance(prior, bool | np.bool_) and prior:
        return None
    if jnp.ndim(prior) == 0 and not isinstance(prior, bool | np.bool_):
        return None
    alive = jnp.broadcast_to(prior, shape)
    if structure.unit_shape(shape) == tuple(shape):
        return ~alive
    return structure.unit_scores(alive.astype(jnp.float32)) <= 0


def _check_pattern(structure: NM, share: Any, path: str) -> None:
    if hasattr(share, "dtype") and isinstance(share, jax.Array):
        return  # a schedule's value: it may be anywhere below the pattern's
    if float(share) != 0 and not math.isclose(float(share), structure.sparsity, rel_tol=1e-6):
        raise ValueError(
            f"`sparsity` must be {structure.sparsity:g} for NM({structure.n}, {structure.m}), which keeps "
            f"{structure.n} of every {structure.m}, got {share} at {path!r}. (`gradual` may pass smaller "
            "ones.)"
        )


def _select_nm(
    structure: NM, paths: list[str], units: list[Any], counts: Any, pruned: list[Any]
) -> list[Any]:
    patterns = [
        nm_keep(u, structure.n, structure.m, structure.group_axis(path, u.shape), pruned=p)
        for path, u, p in zip(paths, units, pruned, strict=True)
    ]
    limits = [u.size * (structure.m - structure.n) // structure.m for u in units]
    if isinstance(counts, list):
        known = all(isinstance(count, int) for count in counts)
        if known and counts == limits:
            return patterns
    elif isinstance(counts, int) and counts == sum(limits):
        return patterns
    # Below the pattern's own sparsity: the lowest of the weights that the pattern would prune. A weight that
    # the pattern keeps ranks above all of them.
    ranked = [
        jnp.where(pattern, jnp.inf, jnp.nan_to_num(u.astype(jnp.float32), nan=-jnp.inf))
        for u, pattern in zip(units, patterns, strict=True)
    ]
    if isinstance(counts, list):
        kept = [select([r], c, pruned=[p])[0] for r, c, p in zip(ranked, counts, pruned, strict=True)]
    else:
        kept = select(ranked, counts, pruned=pruned)
    return [k | pattern for k, pattern in zip(kept, patterns, strict=True)]
