"""The common part of `set` and `rigl`: in each layer as many weights are grown as are dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation import check_fraction
from jaxprune.lookahead import paired, weights_of
from jaxprune.masking import Criterion, Units, apply_masks
from jaxprune.masking.program import comparable, pruned_units, spread
from jaxprune.meshes import placed_like
from jaxprune.params import PyTree, prunable_leaves
from jaxprune.scores import magnitude
from jaxprune.scores._scorer import call_score
from jaxprune.selection import counts, select
from jaxprune.selection.counts import Count
from jaxprune.selection.search import count as count_of
from jaxprune.sparse_training._static import random_masks
from jaxprune.structures import Structure
from jaxprune.structures.keep import above_all
from jaxprune.structures.structure import Cut
from jaxprune.transforms._masked import check_given, masked_update, without_past
from jaxprune.transforms._masks_in_state import stored_masks
from jaxprune.transforms._placeholder import mappable
from jaxprune.transforms._update import update_if
from jaxprune.whole_numbers import check_whole


class DynamicState(NamedTuple):
    """count: steps so far; masks; inner_state: that of the wrapped optimizer."""

    count: jax.Array
    masks: PyTree
    inner_state: Any


def dynamic(
    inner: optax.GradientTransformation,
    grow: Callable[[PyTree, PyTree, jax.Array], PyTree],
    sparsity: Any,
    masks: PyTree | None,
    end: int,
    every: int,
    fraction: float,
    structure: Structure,
    where: PyTree | None,
    key: jax.Array | None,
    score: Callable[..., PyTree] = magnitude,
) -> optax.GradientTransformationExtraArgs:
    """The wrapper of `set` and `rigl`; `grow(updates, params, step)` scores pruned weights, larger = grow."""
    inner = optax.with_extra_args_support(inner)
    criterion = Criterion(structure, "local", where)
    check_whole(every=every)
    check_whole(at_least=0, end=end)
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fraction` must be in [0, 1], got {fraction}.")
    if structure.fixed_sparsity is not None:
        raise ValueError(
            f"`structure` must let any unit of a layer be pruned, got {structure}: see `sr_ste`."
        )
    if (sparsity is None) == (masks is None):
        raise ValueError(
            "pass either `sparsity`, for random initial masks, or initial `masks`, and not both."
        )
    if masks is None and key is None:
        raise ValueError("random masks need a `key`: pass `key=jax.random.key(...)`, or `masks`.")
    if isinstance(sparsity, int | float | str):
        check_fraction("sparsity", sparsity)

    def moving(params: PyTree, masks: PyTree) -> Units:
        """The units of the leaves whose masks change."""
        held = jax.tree.leaves(weights_of(masks))
        chosen = range(len(held)) if where is None else prunable_leaves(params, where)
        return criterion.units(params, [i for i in chosen if jnp.ndim(held[i])])

    def init_fn(params: PyTree) -> DynamicState:
        first = masks
        if first is None:
            first = random_masks(params, sparsity, structure, where, key=key)  # pyright: ignore
        held = stored_masks(params, first)
        held = _in_units(moving(params, held), held)
        return DynamicState(jnp.zeros([], jnp.int32), held, inner.init(apply_masks(params, held)))

    def update_fn(updates: PyTree, state: DynamicState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        step = state.count
        is_due = (step > 0) & (step % every == 0) & (step < end)
        units = moving(params, state.masks)
        old = weights_of(_in_units(units, state.masks))

        def move(old: PyTree) -> PyTree:
            share = fraction / 2 * (1 + jnp.cos(math.pi * step.astype(jnp.float32) / max(end, 1)))
            weights = weights_of(params)
            sizes = call_score(
                score, weights, None if key is None else jax.random.fold_in(jax.random.fold_in(key, step), 1)
            )
            sizes = [units.of_scores(sizes)[i] for i in units.chosen]
            masks, growth = map(units.at_chosen, (old, grow(updates, weights, step)))
            moved = _moved(units.cut, masks, sizes, growth, share)
            return weights_of(units.tree(moved, jax.tree.leaves(old)))

        new = update_if(is_due, move, old)
        stay = paired(jax.tree.map(jnp.logical_and, old, new), params)
        # An update of the masks replaces the step of the optimizer: grown weights are still 0 after it.
        cleared = without_past(inner, state.inner_state, params, stay)
        stepped, inner_state = masked_update(inner, updates, cleared, params, stay, extra_args)
        leaves, treedef = jax.tree.flatten(stepped)
        leaves = [
            jnp.where(is_due & m, jnp.zeros((), u.dtype), u)
            for u, m in zip(leaves, jax.tree.leaves(stay), strict=True)
        ]
        inner_state = jax.tree.map(lambda a, b: _either(is_due, a, b), cleared, inner_state)
        updates = jax.tree.unflatten(treedef, leaves)
        return updates, DynamicState(optax.safe_increment(step), paired(new, params), inner_state)

    return optax.GradientTransformationExtraArgs(mappable(init_fn, DynamicState, inner), update_fn)


def _in_units(units: Units, masks: PyTree) -> PyTree:
    """The masks in the shapes that updates return: one decision per unit, in the form that the structure makes."""
    kept = [~gone for gone in units.pruned(masks)]
    moving = [
        placed_like(mask, units.leaves[i].value)
        for mask, i in zip(spread(units.cut, kept), units.chosen, strict=True)
    ]
    return units.tree(moving, jax.tree.leaves(weights_of(masks)))


def _moved(
    cut: Cut, masks: list[jax.Array], sizes: list[jax.Array], growth: list[jax.Array], share: jax.Array
) -> list[jax.Array]:
    """The masks after the smallest kept units of each leaf have been dropped and as many have been grown.

    The candidates for growing are all units that are not kept after the drop.
    """
    pruned = pruned_units(cut, masks)
    drop, gain = ([comparable(u) for u in cut.scores(leaves)] for leaves in (sizes, growth))
    gone = [counts.total(count_of([p], partitioned=True)) for p in pruned]
    kept = [counts.subtract(Count.of(p.size), n) for p, n in zip(pruned, gone, strict=True)]
    dropped = [counts.add(n, _share_of(share, k)) for n, k in zip(gone, kept, strict=True)]
    # In the order that `pruned=pruned` gives, but as two calls alike, of which XLA compiles one.
    first = [
        jnp.where(p, jnp.nan, jnp.where(jnp.isnan(d), -jnp.inf, d)) for p, d in zip(pruned, drop, strict=True)
    ]
    survives = select(first, dropped)
    # As many units as before are not kept; a survivor ranks above every candidate, NaN and inf included.
    return cut.masks(select([above_all(g, s) for g, s in zip(gain, survives, strict=True)], gone))


def _share_of(share: jax.Array, whole: Count) -> Count:
    """`round(share * whole)` with float32 accuracy: the same number is dropped and grown, whatever it is."""
    number = jnp.round(share * counts.as_float(whole))
    high = jnp.floor(number / 2.0**32)
    part = Count(high.astype(jnp.uint32), (number - high * 2.0**32).astype(jnp.uint32))
    return counts.minimum(part, whole)


def _either(condition: jax.Array, old: Any, new: Any) -> Any:
    """`old` if the condition holds, else `new`, in the dtype of `new`."""
    chosen = jnp.where(condition, old, new)
    is_key = jnp.issubdtype(chosen.dtype, jax.dtypes.prng_key)
    return chosen if is_key else chosen.astype(jnp.asarray(new).dtype)
