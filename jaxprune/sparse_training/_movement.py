"""Movement pruning: weights that move towards zero are pruned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation import Scope
from jaxprune.lookahead import weights_of
from jaxprune.masking import Criterion, apply_masks
from jaxprune.masking.apply import masked_leaf
from jaxprune.masking.units import as_arrays
from jaxprune.params import PyTree, is_float_array
from jaxprune.structures import Structure, Unstructured
from jaxprune.transforms._masked import check_given, masked_update
from jaxprune.transforms._moments import clear_moments
from jaxprune.transforms._placeholder import mappable
from jaxprune.transforms._scheduled import check_schedule, nothing_asked, scheduled_counts, shares_at
from jaxprune.transforms._update import update_if
from jaxprune.whole_numbers import check_whole


class MovementState(NamedTuple):
    """count; sparsity: at the last update of the masks; movement: running scores, float32; masks; inner_state."""

    count: jax.Array
    sparsity: jax.Array
    movement: PyTree
    masks: PyTree
    inner_state: Any


def movement(
    inner: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    *,
    regrow: bool = False,
    every: int = 1,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that fine-tuning prunes the weights that have moved towards zero: `-sum w g`.

    Each step adds `-w dL/dw` to the score of every weight. The masks keep the largest scores; the schedule gives
    the sparsity. A product that is not finite adds nothing.

    With `regrow=False` masks are made where the schedule rises, pruned weights are 0 and remain pruned, and the
    model is called as usual. With `regrow=True` masks are learned, as in the paper: compute the loss at
    `straight_through(params, jp.get_masks(opt_state))`. Pruned weights then keep their values, their scores
    continue to change, and every `every` steps those with high scores are kept again. Deploy
    `jp.apply_masks(params, masks)`.

    Args:
      inner: any optax optimizer.
      schedule: step -> sparsity, or a tree of sparsities, as for `jp.gradual`.
      regrow: whether pruned weights may be kept again.
      every: with `regrow`, number of steps between two updates of the masks.
      scope: "global" or "local".
      structure: how weights form units; the score of a unit is the mean over its weights.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.

    Returns:
      A transformation whose state is a `MovementState`.

    Raises:
      TypeError: if the schedule is not callable.
      ValueError: as `gradual` does.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[4.0, 1.0]])}
      >>> tx = jp.sparse_training.movement(optax.sgd(0.1), jp.schedules.one_shot(0.5, step=1))
      >>> state = tx.init(params)
      >>> for _ in range(2):  # the larger weight moves to zero, the smaller one away from it
      ...     updates, state = tx.update({"w": jnp.array([[1.0, -1.0]])}, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(state.movement["w"], params["w"])
      [[-7.9  2.1]] [[0.  1.2]]

    References:
      Sanh, Wolf, Rush, Movement Pruning: Adaptive Sparsity by Fine-Tuning, 2020, arXiv:2005.07683.
    """
    inner = optax.with_extra_args_support(inner)
    criterion = Criterion(structure, scope, where)
    check_schedule(schedule, structure)
    check_whole(every=every)

    def init_fn(params: PyTree) -> MovementState:
        units = criterion.units(params)
        leaves, treedef = jax.tree.flatten(weights_of(params))
        scores = [
            jnp.zeros_like(w, jnp.float32) if i in units.chosen else jnp.zeros([], jnp.float32)
            for i, w in enumerate(leaves)
        ]
        check_schedule(schedule, structure, units)
        nothing, masks = nothing_asked(schedule, units), units.full_masks()
        count, collected = jnp.zeros([], jnp.int32), jax.tree.unflatten(treedef, scores)
        return MovementState(count, nothing, collected, masks, inner.init(params))

    def update_fn(updates: PyTree, state: MovementState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        units = criterion.units(params)
        sparsity = shares_at(schedule, state.count, units)

        def collect(score: jax.Array, w: jax.Array, g: jax.Array, m: jax.Array) -> jax.Array:
            if m.ndim == 0:
                return score
            w = w if regrow else jnp.where(m, w, jnp.zeros((), w.dtype))
            gain = -w.astype(jnp.float32) * g.astype(jnp.float32)
            return score + jnp.where(jnp.isfinite(gain), gain, 0)

        collected = jax.tree.map(
            collect, state.movement, weights_of(params), updates, weights_of(state.masks)
        )

        def choose(masks: PyTree) -> PyTree:
            counts = scheduled_counts(schedule, sparsity, units)
            return as_arrays(units.masks(collected, counts, None if regrow else masks), masks)

        is_due = jnp.any(sparsity > state.sparsity)
        if regrow:
            is_due |= jnp.any(sparsity > 0) & (state.count % every == 0)
        masks = update_if(is_due, choose, state.masks)
        fresh = inner.init(params if regrow else apply_masks(params, masks))
        inner_state = clear_moments(state.inner_state, params, masks, fresh)
        new_updates, inner_state = masked_update(inner, updates, inner_state, params, masks, extra_args)
        if regrow:  # a pruned weight keeps its value
            new_updates = jax.tree.map(
                lambda u, m: masked_leaf(u, m) if is_float_array(u) else u, new_updates, masks
            )
        count = optax.safe_increment(state.count)
        reached = jnp.maximum(sparsity, state.sparsity)
        return new_updates, MovementState(count, reached, collected, masks, inner_state)

    return optax.GradientTransformationExtraArgs(mappable(init_fn, MovementState, inner), update_fn)
