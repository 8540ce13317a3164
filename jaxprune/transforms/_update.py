"""New masks at some steps only."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxprune.meshes import steady
from jaxprune.params import PyTree


def update_if(condition: jax.Array, change: Callable[[PyTree], PyTree], value: PyTree) -> PyTree:
    """`change(value)` if the condition holds, else `value`: a loop of at most one iteration.

    `vmap` turns `lax.cond` into a select that runs both branches at every step. A vmapped loop iterates only if
    the condition holds for one of the replicates, and it works in place. Gradients do not flow through it.

    Args:
      condition: bool scalar.
      change: function to a tree of the same shapes and dtypes.
      value: tree of arrays.

    Returns:
      A tree like `value`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.transforms._update import update_if
      >>> [int(update_if(jnp.array(c), lambda v: v + 1, jnp.array(3))) for c in (False, True)]
      [3, 4]
    """

    def turn(carry: tuple[jax.Array, PyTree]) -> tuple[jax.Array, PyTree]:
        return jnp.zeros_like(carry[0]), change(carry[1])

    return jax.lax.while_loop(lambda carry: carry[0], turn, steady(turn, (condition, value)))[1]
