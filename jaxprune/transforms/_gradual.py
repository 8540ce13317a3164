"""Masks that follow a schedule during training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation import Scope
from jaxprune.lookahead import weights_of
from jaxprune.masking import Criterion
from jaxprune.params import PyTree
from jaxprune.scores import magnitude
from jaxprune.scores._scorer import call_score
from jaxprune.structures import Structure, Unstructured
from jaxprune.transforms._masked import check_given, masked_update, without_past
from jaxprune.transforms._placeholder import mappable
from jaxprune.transforms._scheduled import (
    check_schedule,
    final_shares,
    nothing_asked,
    scheduled_counts,
    shares_at,
)
from jaxprune.transforms._update import update_if


class GradualState(NamedTuple):
    """count: steps so far; sparsity: float32, that of the last update of the masks; masks; inner_state.

    The sparsity is a scalar, or a vector over the leaves to prune if the schedule returns a tree.
    """

    count: jax.Array
    sparsity: jax.Array
    masks: PyTree
    inner_state: Any


def gradual(
    inner: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    *,
    score: Callable[..., PyTree] = magnitude,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    key: jax.Array | None = None,
    minimum: int | float = 0,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it prunes to sparsity `schedule(step)` and keeps pruned weights at zero.

    Weights are scored and new masks are made only at steps where the value of the schedule changes. The old masks
    are the `prior` of the new ones, so pruned weights remain pruned. Each step is one of `masked`, with the inner
    optimizer's memory of pruned weights kept at its initial value.

    Args:
      inner: any optax optimizer.
      schedule: step -> sparsity, such as `jp.schedules.cubic(0.9, begin=0, end=10_000, every=100)`. It may
        return a tree of sparsities, an allocation: each leaf then has its own, whatever the scope, as with
        `jp.schedules.cubic(jp.allocate.erk(params, 0.9), begin=0, end=10_000, every=100)`.
      score: params -> scores, larger = keep. A function with a parameter `key` or `rng`, or with two
        arguments, gets a fresh key at each update of the masks.
      scope: "global" or "local".
      structure: how weights form units.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.
      key: for score functions that take a key.
      minimum: minimum number of units that each leaf keeps, as for `make_masks`. A schedule that would leave fewer
        stops there.

    Returns:
      A transformation whose state is a `GradualState`.

    Raises:
      ValueError: at `init`, as `make_masks` does; if `params` is not passed to `update`; if the score function
        needs a key and there is none.
      TypeError: if the schedule is not callable.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      >>> tx = jp.gradual(optax.sgd(0.0), jp.schedules.iterative(0.5, rounds=2))
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["w"])
      [[4. 3. 2. 0.]]
      [[4. 3. 0. 0.]]

    References:
      Zhu, Gupta, To prune, or not to prune, 2017, arXiv:1710.01878.
    """
    inner = optax.with_extra_args_support(inner)
    criterion = Criterion(structure, scope, where, minimum)
    check_schedule(schedule, structure)

    def init_fn(params: PyTree) -> GradualState:
        units = criterion.units(params)
        check_schedule(schedule, structure, units)
        final = final_shares(schedule, units)
        if final is not None:
            units.check_minimum(final)
        nothing = nothing_asked(schedule, units)
        return GradualState(jnp.zeros([], jnp.int32), nothing, units.full_masks(), inner.init(params))

    def update_fn(updates: PyTree, state: GradualState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        units = criterion.units(params)
        sparsity = shares_at(schedule, state.count, units)

        def prune(masks: PyTree) -> PyTree:
            step_key = None if key is None else jax.random.fold_in(key, state.count)
            scores = call_score(score, weights_of(params), step_key)
            return units.next_masks(scores, scheduled_counts(schedule, sparsity, units), masks)

        masks = update_if(jnp.any(sparsity > state.sparsity), prune, state.masks)
        inner_state = without_past(inner, state.inner_state, params, masks)
        new_updates, inner_state = masked_update(inner, updates, inner_state, params, masks, extra_args)
        count = optax.safe_increment(state.count)
        return new_updates, GradualState(count, jnp.maximum(sparsity, state.sparsity), masks, inner_state)

    return optax.GradientTransformationExtraArgs(mappable(init_fn, GradualState, inner), update_fn)
