"""Gradients of a loss with respect to the float leaves of any pytree, averaged over batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, is_float_array
from jaxprune.tree_nodes import split_leaves

Join = Callable[[Sequence[Any]], PyTree]


def split_floats(params: PyTree) -> tuple[list[jax.Array], Join]:
    """The float leaves of a tree, and a function that returns the tree with other leaves in their places."""
    floats, join = split_leaves(params, is_float_array)
    return [jnp.asarray(x) for x in floats], join


def checked_loss(loss_fn: Callable[[PyTree, Any], Any], join: Join) -> Callable[[Sequence[Any], Any], Any]:
    """The loss as a function of (float leaves, batch); raises ValueError if it is not a scalar."""

    def loss(floats: Sequence[Any], batch: Any) -> jax.Array:
        value = loss_fn(join(floats), batch)
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                f"`loss_fn` must return one floating-point number, got {jnp.result_type(value)} of shape "
                f"{jnp.shape(value)}. Return the mean over the batch, without auxiliary outputs."
            )
        return value

    return loss


def batches_of(each: Sequence[Any], together: Iterable[Any] | None) -> list[Any]:
    """The batches of a score: one an argument, or all in `batches=`; ValueError if there is none, or both are given."""
    if each and together is not None:
        raise ValueError(
            "`batches` must hold all batches, but others are passed after `params`: pass them in one place."
        )
    found = list(each if together is None else together)
    if not found:
        raise ValueError(
            "`batches` is empty: pass at least one batch after `params`, or batches=[batch, ...]."
        )
    return found


def mean_over_batches(
    tree_of: Callable[[Any], Sequence[jax.Array]], batches: Sequence[Any]
) -> list[jax.Array]:
    """Mean of `tree_of(batch)` in float32."""
    total = None
    for batch in batches:
        found = [x.astype(jnp.float32) for x in tree_of(batch)]
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    return [x / len(batches) for x in total or []]


def mean_gradients(
    loss: Callable[[Sequence[Any], Any], Any], floats: Sequence[jax.Array], batches: Sequence[Any]
) -> list[jax.Array]:
    """Gradient of the mean loss over batches, float32."""
    return mean_over_batches(lambda batch: jax.grad(loss)(list(floats), batch), batches)
