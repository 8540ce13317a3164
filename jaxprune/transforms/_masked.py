"""Fixed masks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.lookahead import is_pair, weights_of
from jaxprune.masking.apply import apply_masks, masked_leaf
from jaxprune.params import PyTree, resolved
from jaxprune.transforms._masks_in_state import check_not_optax_mask, stored_masks
from jaxprune.transforms._moments import clear_moments
from jaxprune.transforms._placeholder import mappable

_INNER = "masked_inner"  # the attribute of an update that tells its inner optimizer


class MaskedState(NamedTuple):
    """masks: bool tree like the parameters; inner_state: the state of the wrapped optimizer."""

    masks: PyTree
    inner_state: Any


def masked(
    inner: optax.GradientTransformation, masks: PyTree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that pruned weights are exactly zero after every update.

    The inner optimizer gets neither the gradients nor the values of pruned weights, so that its moments, norms
    and weight decay are those of the sparse network. The update of a pruned weight w is -w. Put this wrapper
    outermost: a transformation chained after it could move pruned weights away from zero, and
    `optax.lookahead` or `schedule_free` around it would average the zeros with earlier values.

    A mask says which weights of a leaf are kept. (In `optax.masked` it says which leaves are transformed.)

    Args:
      inner: any optax optimizer. With `optax.lookahead` inside, fast and slow weights have the same mask.
      masks: tree like the parameters of bool arrays that broadcast to them, True = keep; or a prefix of one,
        where a scalar stands for a subtree; or a function of the parameters that returns one. A scalar False
        prunes a whole leaf. None prunes nothing until `replace_masks`.

    Returns:
      A transformation whose state is a `MaskedState`; `get_masks` reads the masks.

    Raises:
      ValueError: if masks are Python bools only, one of them False: those are for `optax.masked`. At `init`, if
        masks don't match the parameters. At `update`, if `params` is not passed.

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
    check_not_optax_mask(masks)

    def init_fn(params: PyTree) -> MaskedState:
        given = None if masks is None else resolved(params, masks, "masks")
        check_not_optax_mask(given)
        held = stored_masks(params, given)
        return MaskedState(held, inner.init(apply_masks(params, held)))

    def update_fn(updates: PyTree, state: MaskedState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        inner_state = without_past(inner, state.inner_state, params, state.masks)
        updates, inner_state = masked_update(inner, updates, inner_state, params, state.masks, extra_args)
        return updates, MaskedState(state.masks, inner_state)

    setattr(update_fn, _INNER, inner)
    return optax.GradientTransformationExtraArgs(mappable(init_fn, MaskedState, inner), update_fn)


def unwrapped(tx: Any) -> Any:
    """The optimizer that `masked` wraps; any other as it is."""
    return getattr(tx.update, _INNER, tx)


def check_given(params: PyTree | None) -> None:
    """Raises ValueError if there is no `params`, which is optional in optax."""
    if params is None:
        raise ValueError("`params` must be given to update(): call tx.update(grads, state, params).")


def without_past(
    inner: optax.GradientTransformationExtraArgs, inner_state: Any, params: PyTree, masks: PyTree
) -> Any:
    """The state of `inner` with its memory of pruned weights as after `init`: they may have just been pruned.

    It is called at every step; under `jit` it fuses into the inner update.
    """
    return clear_moments(inner_state, params, masks, inner.init(apply_masks(params, masks)))


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

    def prune(tree: PyTree, masks: PyTree) -> PyTree:
        leaves, treedef = jax.tree.flatten(tree)
        keep = jax.tree.leaves(masks)
        pruned = [
            masked_leaf(leaf, m) if _is_masked(m, leaf) else leaf
            for m, leaf in zip(keep, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, pruned)

    # Lookahead takes the gradients of the fast weights and gives updates of the pair.
    of_updates = masks if is_pair(updates) else weights_of(masks)
    sparse = prune(updates, of_updates), inner_state, prune(params, masks)
    updates, inner_state = inner.update(*sparse, **extra_args)
    leaves, treedef = jax.tree.flatten(updates)
    # where() promotes, so -w is never rounded: w + (-w) is exactly zero, and +0.0, in any dtype.
    exact = [
        jnp.where(m, u, -w) if _is_masked(m, w) and _is_masked(m, u) else u
        for m, u, w in zip(jax.tree.leaves(masks), leaves, jax.tree.leaves(params), strict=True)
    ]
    return jax.tree.unflatten(treedef, exact), inner_state


def _is_masked(mask: Any, leaf: Any) -> bool:
    """Whether a mask may prune weights: a scalar of unknown value may; keys and other non-numbers may not."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.ndim(mask) > 0 or jnp.issubdtype(dtype, jnp.number)
