"""What `set` and `rigl` share: weights are dropped and as many are grown, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation import check_fraction, check_scope
from jaxprune.lookahead import paired, weights_of
from jaxprune.masks import apply_masks
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves
from jaxprune.scores import magnitude
from jaxprune.selection import counts, select
from jaxprune.selection.counts import Count
from jaxprune.selection.search import count as count_of
from jaxprune.sparse_training.largest import check_steps
from jaxprune.sparse_training.static import random_masks
from jaxprune.structures import NM, Structure
from jaxprune.transforms.masked import check_given, masked_update, without_past
from jaxprune.transforms.masks_in_state import stored_masks
from jaxprune.transforms.placeholder import mappable
from jaxprune.transforms.turn import turn_if
from jaxprune.units import below_infinity, placed_like, pruned_units


class DynamicState(NamedTuple):
    """count: steps so far; masks; inner_state: the wrapped optimizer's."""

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
) -> optax.GradientTransformationExtraArgs:
    """The wrapper of `set` and `rigl`; `grow(updates, params, step)` scores what may come, larger = grow."""
    inner = optax.with_extra_args_support(inner)
    check_scope("local", structure)
    check_steps(end=end, every=every)
    if not 0 <= fraction <= 1:
        raise ValueError(f"`fraction` must be in [0, 1], got {fraction}.")
    if isinstance(structure, NM):
        raise ValueError(
            f"`structure` must leave a layer's units free to move, got {structure}: see `sr_ste`."
        )
    if (sparsity is None) == (masks is None):
        raise ValueError("give either `sparsity`, for random masks, or `masks` to begin with.")
    if masks is None and key is None:
        raise ValueError("random masks need a `key`: pass `key=jax.random.key(...)`, or give `masks`.")
    if isinstance(sparsity, int | float | str):
        check_fraction("sparsity", sparsity)

    def moving(params: PyTree, masks: PyTree) -> list[int]:
        """Positions of the leaves whose masks move."""
        held = jax.tree.leaves(weights_of(masks))
        chosen = range(len(held)) if where is None else prunable_leaves(params, where)
        return [i for i in chosen if jnp.ndim(held[i])]

    def init_fn(params: PyTree) -> DynamicState:
        first = masks
        if first is None:
            first = random_masks(key, params, sparsity, structure, where)  # pyright: ignore
        held = stored_masks(params, first)
        held = paired(_in_units(weights_of(held), weights_of(params), moving(params, held), structure), held)
        return DynamicState(jnp.zeros([], jnp.int32), held, inner.init(apply_masks(params, held)))

    def update_fn(updates: PyTree, state: DynamicState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        step = state.count
        is_due = (step > 0) & (step % every == 0) & (step < end)
        chosen = moving(params, state.masks)
        weights = weights_of(params)
        old = _in_units(weights_of(state.masks), weights, chosen, structure)

        def move(old: PyTree) -> PyTree:
            share = fraction / 2 * (1 + jnp.cos(math.pi * step.astype(jnp.float32) / max(end, 1)))
            leaves, treedef = jax.tree.flatten(old)
            sizes, growth = jax.tree.leaves(magnitude(weights)), jax.tree.leaves(grow(updates, weights, step))
            for i in chosen:
                leaves[i] = _moved(leaves[i], sizes[i], growth[i], share, structure)
            return jax.tree.unflatten(treedef, leaves)

        new = turn_if(is_due, move, old)
        stay = paired(jax.tree.map(jnp.logical_and, old, new), params)
        # An update of the masks takes the place of the optimizer's step: what is new is still 0 after it.
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


def _in_units(masks: PyTree, params: PyTree, chosen: list[int], structure: Structure) -> PyTree:
    """The masks in the shapes in which they move: one decision a unit, spread as the structure spreads it."""
    paths, leaves, _ = flatten_with_paths(params)
    held, treedef = jax.tree.flatten(masks)
    for i in chosen:
        structure.check(paths[i], leaves[i].shape)
        kept = ~_pruned(structure, held[i], leaves[i].shape)
        held[i] = placed_like(structure.expand(kept, leaves[i].shape), leaves[i])
    return jax.tree.unflatten(treedef, held)


def _moved(mask: jax.Array, size: jax.Array, growth: jax.Array, share: jax.Array, structure: Structure):
    """The mask after its smallest kept units went and as many came, from all that are then not kept."""
    pruned = _pruned(structure, mask, size.shape)
    drop, gain = _scores(structure, size), _scores(structure, growth)
    gone = counts.total(count_of([pruned], partitioned=True))
    kept = counts.total(count_of([~pruned], partitioned=True))
    (survives,) = select([drop], counts.add(gone, _share_of(share, kept)), pruned=[pruned])
    # As many units as before are not kept; a survivor ranks above every candidate, NaN and inf included.
    gain = jnp.where(survives, jnp.inf, below_infinity(gain))
    (keep,) = select([gain], gone)
    return structure.expand(keep, size.shape)


def _pruned(structure: Structure, mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    pruned = pruned_units(structure, mask, shape)
    return jnp.zeros(structure.unit_shape(shape), bool) if pruned is None else pruned


def _scores(structure: Structure, leaf: jax.Array) -> jax.Array:
    units = structure.unit_scores(leaf)
    return units.astype(jnp.float32) if units.dtype == jnp.float64 else units


def _share_of(share: jax.Array, whole: Count) -> Count:
    """`round(share * whole)`, to float32's accuracy: as many are grown as are dropped, whatever the number."""
    number = jnp.round(share * counts.as_float(whole))
    high = jnp.floor(number / 2.0**32)
    part = Count(high.astype(jnp.uint32), (number - high * 2.0**32).astype(jnp.uint32))
    return counts.minimum(part, whole)


def _either(condition: jax.Array, old: Any, new: Any) -> Any:
    """`old` where the condition holds, else `new`, in the dtype of `new`."""
    chosen = jnp.where(condition, old, new)
    is_key = jnp.issubdtype(chosen.dtype, jax.dtypes.prng_key)
    return chosen if is_key else chosen.astype(jnp.asarray(new).dtype)
