"""Masks inside an optimizer state, however deep: read them, replace them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, aligned, mask_leaves
from jaxprune.units import placed_like


def holds_masks(node: Any) -> bool:
    """Whether a node of an optimizer state is one of ours: a NamedTuple with a field `masks`."""
    return "masks" in getattr(node, "_fields", ())


def has_masks(opt_state: PyTree) -> bool:
    """Whether an optimizer state holds masks.

    Example:
      >>> import optax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.has_masks(optax.adam(1e-3).init({"w": jnp.ones((2, 2))}))
      False
    """
    return any(holds_masks(node) for node in jax.tree.leaves(opt_state, is_leaf=holds_masks))


def get_masks(opt_state: PyTree) -> PyTree:
    """The masks that a `masked` or `gradual` wrapper keeps in its state, inside any chain or wrapper.

    Args:
      opt_state: an optimizer state: of optax, or the `opt_state` of an `nnx.Optimizer`.

    Returns:
      Tree like the parameters; leaves that are not prunable hold a scalar True.

    Raises:
      ValueError: no masks in it, or those of more than one wrapper.

    Example:
      >>> import optax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.ones((1, 2))}
      >>> tx = optax.chain(optax.clip(1.0), jp.masked(optax.adam(1e-3), {"w": jnp.array([[True, False]])}))
      >>> jp.get_masks(tx.init(params))
      {'w': Array([[ True, False]], dtype=bool)}
    """
    return _only(opt_state).masks


def replace_masks(opt_state: PyTree, masks: PyTree) -> PyTree:
    """The same optimizer state with other masks; the next update enforces them.

    Args:
      opt_state: an optimizer state with masks, unchanged by this.
      masks: tree like the parameters of bool arrays.

    Returns:
      The new state.

    Raises:
      ValueError: no masks in `opt_state`, those of more than one wrapper, or trees that don't match.

    Example:
      >>> import optax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> tx = jp.masked(optax.sgd(0.1))
      >>> state = tx.init({"w": jnp.ones((1, 2))})
      >>> jp.get_masks(jp.replace_masks(state, {"w": jnp.array([[True, False]])}))
      {'w': Array([[ True, False]], dtype=bool)}
    """
    held = _only(opt_state).masks
    leaves = [stored(mask, None) for mask in mask_leaves_of_masks(held, masks)]
    new = jax.tree.unflatten(jax.tree.structure(held), leaves)
    return jax.tree.map(
        lambda node: node._replace(masks=new) if holds_masks(node) else node, opt_state, is_leaf=holds_masks
    )


def mask_leaves_of_masks(held: PyTree, masks: PyTree) -> list[Any]:
    """Leaves of new masks in the order of the held ones; only bools pass."""
    found = aligned(held, masks, "masks")
    for mask in found:
        if not isinstance(mask, bool) and getattr(mask, "dtype", None) != jnp.bool_:
            raise TypeError(f"`masks` must hold bool arrays (True = keep), got {mask!r}.")
    return found


def stored(mask: Any, ndim: int | None) -> jax.Array:
    """A mask as the state keeps it: an array of its own, so that donating the state leaves the user's alone.

    A scalar stands for a leaf that is not prunable, which costs nothing in an update. So a scalar False, a
    leaf pruned as a whole, is kept with the parameter's axes.
    """
    if isinstance(mask, bool) and not mask and ndim:
        return jnp.zeros((1,) * ndim, bool)
    return jnp.array(mask, bool, copy=True)


def stored_masks(params: PyTree, masks: PyTree | None) -> PyTree:
    """Checked copies of `masks`; None stands for nothing pruned."""
    leaves, treedef = jax.tree.flatten(params)
    found = [True] * len(leaves) if masks is None else mask_leaves(params, masks)
    held = [placed_like(stored(mask, jnp.ndim(w)), w) for w, mask in zip(leaves, found, strict=True)]
    return jax.tree.unflatten(treedef, held)


def _only(opt_state: PyTree) -> Any:
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=holds_masks) if holds_masks(node)]
    if not found:
        raise ValueError(
            "`opt_state` holds no masks: wrap the optimizer, as in jp.masked(optax.adam(1e-3), masks), "
            f"before its init. Got {type(opt_state).__name__}."
        )
    if len(found) > 1:
        raise ValueError(f"`opt_state` holds the masks of {len(found)} wrappers: use one, around the others.")
    return found[0]
