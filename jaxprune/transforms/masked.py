"""Fixed masks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.masks import apply_masks
from jaxprune.params import PyTree
from jaxprune.transforms.masks_in_state import stored_masks


class MaskedState(NamedTuple):
    """masks: bool tree like the parameters; inner_state: the wrapped optimizer's."""

    masks: PyTree
    inner_state: Any


def masked(
    inner: optax.GradientTransformation, masks: PyTree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that pruned weights are exactly zero after every update.

    The inner optimizer sees neither the gradients nor the values of pruned weights, so that its moments,
    norms and weight decay are those of the sparse network. The update of a pruned weight w is -w. Put this
    wrapper outermost: what is chained after it could move the zeros again.

    Args:
      inner: any optax optimizer.
      masks: tree like the parameters of bool arrays that broadcast to them, True = keep; None prunes nothing
        until `replace_masks`.

    Returns:
      A transformation whose state is a `MaskedState`; `get_masks` reads the masks.

    Raises:
      ValueError: at `init`, masks that don't match the parameters; at `update`, no `params`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([1.0, 2.0])}
      >>> tx = jp.masked(optax.sgd(0.1), {"w": jnp.array([True, False])})
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.array([1.0, 1.0])}, state, params)
      >>> optax.apply_updates(params, updates)
      {'w': Array([0.9, 0. ], dtype=float32)}
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: PyTree) -> MaskedState:
        held = stored_masks(params, masks)
        return MaskedState(held, inner.init(apply_masks(params, held)))

    def update_fn(updates: PyTree, state: MaskedState, params: PyTree | None = None, **extra_args: Any):
        updates, inner_state = masked_update(
            inner, updates, state.inner_state, params, state.masks, extra_args
        )
        return updates, MaskedState(state.masks, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def check_given(params: PyTree | None) -> None:
    """Raises ValueError without `params`, which optax leaves optional."""
    if params is None:
        raise ValueError("`params` must be given to update(): pass tx.update(grads, state, params).")


def masked_update(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    inner_state: Any,
    params: PyTree | None,
    masks: PyTree,
    extra_args: dict[str, Any],
) -> tuple[PyTree, Any]:
    """One step of `inner` on the sparse network; the update of a pruned weight w is -w."""
    check_given(params)
    keep = jax.tree.leaves(masks)

    def prune(tree: PyTree) -> PyTree:
        leaves, treedef = jax.tree.flatten(tree)
        pruned = [
            jnp.where(m, leaf, jnp.zeros((), leaf.dtype)) if jnp.ndim(m) else leaf
            for m, leaf in zip(keep, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, pruned)

    updates, inner_state = inner.update(prune(updates), inner_state, prune(params), **extra_args)
    leaves, treedef = jax.tree.flatten(updates)
    # where() promotes, so -w is never rounded: w + (-w) is exactly zero, and +0.0, in any dtype.
    exact = [
        jnp.where(m, u, -w) if jnp.ndim(m) else u
        for m, u, w in zip(keep, leaves, jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.unflatten(treedef, exact), inner_state
