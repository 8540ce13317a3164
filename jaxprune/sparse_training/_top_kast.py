"""Top-KAST: the forward pass uses the largest weights, a larger set of weights is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.allocation import Scope, check_fraction
from jaxprune.lookahead import refuse_pair
from jaxprune.masking import Criterion
from jaxprune.params import PyTree
from jaxprune.scores import magnitude
from jaxprune.sparse_training._top_k import check_sparsity, top_k
from jaxprune.structures import Structure, Unstructured
from jaxprune.transforms._masked import check_given
from jaxprune.transforms._moments import clear_moments
from jaxprune.transforms._placeholder import mappable
from jaxprune.transforms._update import update_if
from jaxprune.whole_numbers import check_whole


class TopKASTState(NamedTuple):
    """count; masks: the set A that the forward pass uses; backward_masks: the trained set B; inner_state."""

    count: jax.Array
    masks: PyTree
    backward_masks: PyTree
    inner_state: Any


def top_kast(
    inner: optax.GradientTransformation,
    sparsity: Any,
    *,
    backward_sparsity: Any,
    decay: float = 1e-4,
    every: int = 1,
    scope: Scope = "local",
    score: Callable[..., PyTree] = magnitude,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that the loss uses the top D of the weights and the top D + M are updated.

    Compute the loss at `straight_through(params, masks, backward_masks)` with the masks of the state (without
    `backward_masks` the updates are the same). Weights outside of the set B keep their values and have no
    moments. Weights in B get the exploration regularisation of the paper, an L2 penalty that is stronger on
    weights that the forward pass does not use: `g + decay w` for w in A, `g + decay w / D` for w in B but not
    in A, where D is the density of the layer. Deploy `jp.apply_masks(params, jp.get_masks(opt_state))`.

    Args:
      inner: any optax optimizer.
      sparsity: fraction of the units that the forward pass does not use, in [0, 1), or a tree of them (an
        allocation).
      backward_sparsity: fraction of the units that are not trained, at most `sparsity`, or a tree of them.
      decay: strength of the regularisation.
      every: number of steps between two updates of the masks.
      scope: "global" or "local"; the paper uses the top weights of each layer.
      score: params -> scores, larger = keep.
      structure: how weights form units.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.

    Returns:
      A transformation whose state is a `TopKASTState`.

    Raises:
      ValueError: if `backward_sparsity` is above `sparsity`; at `init`, as `make_masks` does; if `params` is not
        passed to `update`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      >>> tx = jp.sparse_training.top_kast(optax.sgd(0.1), 0.75, backward_sparsity=0.5, decay=0.5)
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.ones((1, 4))}, state, params)
      >>> optax.apply_updates(params, updates)["w"]
      Array([[3.7, 2.3, 2. , 1. ]], dtype=float32)

    References:
      Jayakumar et al., Top-KAST: Top-K Always Sparse Training, 2021, arXiv:2106.03517.
    """
    inner = optax.with_extra_args_support(inner)
    criterion = Criterion(structure, scope, where)
    check_sparsity(sparsity, structure)
    check_whole(every=every)
    if isinstance(backward_sparsity, int | float):
        check_fraction("backward_sparsity", backward_sparsity)
    is_number = isinstance(sparsity, int | float) and isinstance(backward_sparsity, int | float)
    if is_number and float(backward_sparsity) > float(sparsity):
        raise ValueError(
            f"`backward_sparsity` must be at most `sparsity`, {sparsity}, got {backward_sparsity}: every weight "
            "that the forward pass uses is also trained."
        )
    if decay < 0:
        raise ValueError(f"`decay` must be at least 0, got {decay}.")

    def sets_of(params: PyTree) -> tuple[PyTree, PyTree]:
        shares = (sparsity, backward_sparsity)
        used, learning = (top_k(params, share, criterion, score) for share in shares)
        return used, jax.tree.map(jnp.logical_or, used, learning)  # an allocation may ask for less

    def init_fn(params: PyTree) -> TopKASTState:
        refuse_pair(params, "top_kast")
        used, learning = sets_of(params)
        return TopKASTState(jnp.zeros([], jnp.int32), used, learning, inner.init(params))

    def update_fn(updates: PyTree, state: TopKASTState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        used, learning = state.masks, state.backward_masks

        def regularised(u: jax.Array, a: jax.Array, b: jax.Array, w: jax.Array) -> jax.Array:
            if a.ndim == 0:
                return u
            density = jnp.maximum(jnp.mean(a, dtype=jnp.float32), 1 / max(a.size, 1))
            pull = decay * jnp.where(a, 1, 1 / density) * w
            return jnp.where(b, u + pull.astype(u.dtype), jnp.zeros((), u.dtype))

        updates = jax.tree.map(regularised, updates, used, learning, params)
        inner_state = clear_moments(state.inner_state, params, learning, inner.init(params))
        updates, inner_state = inner.update(updates, inner_state, params, **extra_args)
        # The weight decay of the inner optimizer would move weights that are not trained.
        updates = jax.tree.map(
            lambda u, b: jnp.where(b, u, jnp.zeros((), u.dtype)) if b.ndim else u, updates, learning
        )
        count = optax.safe_increment(state.count)

        def renew(sets: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            del sets
            return sets_of(optax.apply_updates(params, updates))

        used, learning = update_if(count % every == 0, renew, (used, learning))
        return updates, TopKASTState(count, used, learning, inner_state)

    return optax.GradientTransformationExtraArgs(mappable(init_fn, TopKASTState, inner), update_fn)
