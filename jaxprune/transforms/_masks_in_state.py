"""Masks inside an optimizer state, at any depth: read them, replace them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.holes import check_hidden, filled, is_hole, without_hidden
from jaxprune.lookahead import paired
from jaxprune.meshes import placed_like
from jaxprune.params import PyTree, aligned, is_kept_whole, mask_leaves


def holds_masks(node: Any) -> bool:
    """Whether a node of an optimizer state is a wrapper's: a NamedTuple with `masks` and `inner_state`."""
    return {"masks", "inner_state"} <= set(getattr(node, "_fields", ()))


def has_masks(opt_state: PyTree) -> bool:
    """Whether an optimizer state holds masks.

    Example:
      >>> import optax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.has_masks(optax.adam(1e-3).init({"w": jnp.ones((2, 2))}))
      False
    """
    return bool(_wrappers(opt_state))


def get_masks(opt_state: PyTree) -> PyTree:
    """The masks that a `masked` or `gradual` wrapper has in its state, inside any chain or wrapper.

    Args:
      opt_state: an optimizer state of optax, or the `opt_state` of an `nnx.Optimizer`.

    Returns:
      Tree like the parameters. Leaves that are not prunable have a scalar True, and so have parameters that
      `optax.partition` or `optax.masked` passes to other optimizers (one True for a whole subtree if a prefix
      of labels hides the subtree). The masks of several groups of a partition are merged into one tree.

    Raises:
      ValueError: if it has no masks, or more than one wrapper has masks for the same parameter.

    Example:
      >>> import optax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.ones((1, 2))}
      >>> tx = optax.chain(optax.clip(1.0), jp.masked(optax.adam(1e-3), {"w": jnp.array([[True, False]])}))
      >>> jp.get_masks(tx.init(params))
      {'w': Array([[ True, False]], dtype=bool)}
    """
    return filled(_merged(opt_state), jnp.array(True))


def replace_masks(opt_state: PyTree, masks: PyTree) -> PyTree:
    """The optimizer state with other masks, which the next update enforces.

    Args:
      opt_state: an optimizer state with masks; it is not changed.
      masks: tree like the parameters of bool arrays, or a prefix of one with scalars.

    Returns:
      The new state.

    Raises:
      ValueError: if `opt_state` has no masks, or those of more than one wrapper for the same parameter; if the
        trees don't match; if a mask prunes a parameter that no wrapper updates; if the wrapper is inside
        `optax.lookahead` or `schedule_free`, whose average would bring pruned weights back.

    Example:
      >>> import optax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> tx = jp.masked(optax.sgd(0.1))
      >>> state = tx.init({"w": jnp.ones((1, 2))})
      >>> jp.get_masks(jp.replace_masks(state, {"w": jnp.array([[True, False]])}))
      {'w': Array([[ True, False]], dtype=bool)}
    """
    averaging = (optax.LookaheadState, optax.contrib.ScheduleFreeState)
    for node in jax.tree.leaves(opt_state, is_leaf=lambda x: isinstance(x, averaging) or holds_masks(x)):
        if isinstance(node, averaging) and has_masks(node):
            raise ValueError(
                f"`opt_state` has its masks inside a {type(node).__name__}, whose average would bring pruned "
                "weights back: put the wrapper around it, as in jp.masked(optax.lookahead(...))."
            )
    return with_masks(opt_state, masks)


def with_masks(opt_state: PyTree, masks: PyTree) -> PyTree:
    """`replace_masks` for callers that also mask the weights and all memory of them."""
    merged = _merged(opt_state)
    masks = paired(masks, merged)
    _, hidden = without_hidden(merged, masks)
    check_hidden(hidden)

    def renewed(node: Any) -> Any:
        if not holds_masks(node):
            return node
        new, _ = without_hidden(node.masks, masks)
        leaves, treedef = jax.tree.flatten(node.masks)
        pairs = zip(leaves, aligned(node.masks, new, "masks"), strict=True)
        return node._replace(masks=jax.tree.unflatten(treedef, [_in_place_of(*pair) for pair in pairs]))

    return jax.tree.map(renewed, opt_state, is_leaf=holds_masks)


def stored_masks(params: PyTree, masks: PyTree | None) -> PyTree:
    """Checked copies of `masks`, so that donating the state does not delete the user's; None prunes nothing.

    A scalar True stands for a leaf that is not prunable, which costs nothing in an update. Therefore a scalar
    False, for a leaf that is pruned as a whole, is stored with the axes of the parameter.
    """
    leaves, treedef = jax.tree.flatten(params)
    found = [True] * len(leaves) if masks is None else mask_leaves(params, masks)
    held = []
    for w, mask in zip(leaves, found, strict=True):
        is_false = jnp.ndim(mask) == 0 and not isinstance(mask, jax.core.Tracer) and not is_kept_whole(mask)
        stored = jnp.zeros((1,) * jnp.ndim(w), bool) if is_false else jnp.array(mask, bool, copy=True)
        held.append(placed_like(stored, w))
    return jax.tree.unflatten(treedef, held)


def check_not_optax_mask(masks: PyTree) -> None:
    """Raises ValueError for a mask of `optax.masked`: Python bools that say which leaves to transform."""
    leaves = jax.tree.leaves(masks)
    if leaves and all(isinstance(leaf, bool) for leaf in leaves) and not all(leaves):
        raise ValueError(
            "`masks` holds Python bools only. In optax.masked, False leaves a parameter alone; in jp.masked, "
            "it would prune all of it. To train and prune some parameters only, combine the two: "
            "optax.masked(jp.masked(inner, masks), bools), with masks from make_masks(..., where=bools). To "
            "prune whole parameters, pass arrays: jnp.zeros((1,) * w.ndim, bool)."
        )


def _in_place_of(held: jax.Array, mask: Any) -> jax.Array:
    """A new mask in the shape of the stored one if it fits, so that nothing is traced again."""
    if not isinstance(mask, bool) and getattr(mask, "dtype", None) != jnp.bool_:
        raise TypeError(f"`masks` must hold bool arrays (True = keep), got {mask!r}.")
    if jnp.ndim(mask) == 0 and held.ndim:
        return jnp.full_like(held, mask)
    new = jnp.array(mask, bool, copy=True)
    fits = new.ndim == held.ndim and all(n in (1, m) for n, m in zip(new.shape, held.shape, strict=True))
    return jnp.broadcast_to(new, held.shape) if fits and new.shape != held.shape else new


def _wrappers(opt_state: PyTree) -> list[Any]:
    return [node for node in jax.tree.leaves(opt_state, is_leaf=holds_masks) if holds_masks(node)]


def _merged(opt_state: PyTree) -> PyTree:
    """The masks of all wrappers as one tree, with holes for parameters without masks."""
    found = [node.masks for node in _wrappers(opt_state)]
    if not found:
        raise ValueError(
            "`opt_state` holds no masks: wrap the optimizer, as in jp.masked(optax.adam(1e-3), masks), "
            f"before calling its init. Got {type(opt_state).__name__}."
        )

    def merge(trees: list[PyTree]) -> PyTree:
        seen = [tree for tree in trees if not is_hole(tree)]
        if len(seen) < 2:
            return (seen or trees)[0]
        nodes = [jax.tree.flatten(tree, is_leaf=lambda x, tree=tree: x is not tree) for tree in seen]
        children, treedefs = zip(*nodes, strict=True)
        if jax.tree_util.all_leaves(seen) or len(set(treedefs)) > 1:
            raise ValueError(
                f"`opt_state` holds the masks of {len(found)} wrappers: use one wrapper, outermost."
            )
        return jax.tree.unflatten(treedefs[0], [merge(list(each)) for each in zip(*children, strict=True)])

    return merge(found)
