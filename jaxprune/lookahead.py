"""The pair of parameters that `optax.lookahead` trains: fast and slow weights share their masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxprune.tree_nodes import PyTree


def is_pair(tree: PyTree) -> bool:
    """Whether a tree is lookahead's pair."""
    return isinstance(tree, optax.LookaheadParams)


def weights_of(tree: PyTree) -> PyTree:
    """The fast weights of a pair, to which gradients and scores belong; any other tree as it is."""
    return tree.fast if is_pair(tree) else tree


def paired(tree: PyTree, params: PyTree) -> PyTree:
    """A tree for the weights as one for both halves of a pair: two copies, because donating needs two buffers."""
    if not is_pair(params) or is_pair(tree):
        return tree
    return optax.LookaheadParams(fast=tree, slow=jax.tree.map(_copy, tree))


def refuse_pair(params: PyTree, wrapper: str) -> None:
    """Raises ValueError for lookahead's pair in a wrapper that trains dense weights."""
    if is_pair(params):
        raise ValueError(
            f"`params` must be the weights themselves for `{wrapper}`, got lookahead's pair: put lookahead "
            f"around it, as in optax.lookahead({wrapper}(...), sync_period, slow_step_size)."
        )


def _copy(leaf: object) -> object:
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf
