"""Values that the compiler cannot see."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.meshes import steady


def hidden(values: Sequence[jax.typing.ArrayLike]) -> list[jax.Array]:
    """The same arrays, of one shape and dtype, but XLA can see neither their values nor how they were computed.

    XLA compiles a piece of a program once if it occurs several times. The pieces for leaf 3 and for leaf 4 differ
    if the number of the leaf is a constant in them, or if the arithmetic before them is fused into them. Hidden
    values make the pieces equal, so that leaves of one size share their compiled code. The values come out of a
    loop without iterations.

    Example:
      >>> [int(number) for number in hidden([3, 5])]
      [3, 5]
    """

    def turn(carry: tuple[jax.Array, list[jax.Array]]) -> tuple[jax.Array, list[jax.Array]]:
        never, values = carry
        return never, [*values[1:], values[0]]

    never = lax.optimization_barrier(jnp.zeros((), bool))
    arrays = [jnp.asarray(value) for value in values]
    if not arrays:
        return []
    # With one extra value an iteration moves all of them: XLA would see through a value that never moves.
    start = (never, [*arrays, *(jnp.zeros_like(array) for array in arrays[:1])])
    return lax.while_loop(lambda carry: carry[0], turn, steady(turn, start))[1][: len(arrays)]
