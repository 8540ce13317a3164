"""Values that the compiler does not know."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.meshes import steady


def hidden(values: Sequence[jax.typing.ArrayLike]) -> list[jax.Array]:
    """Arrays of one shape and type, as they are, but XLA can neither see their values nor how they were computed.

    XLA compiles a piece of a program once if it occurs several times, but a piece that works on leaf 3 is another
    one than that for leaf 4 as soon as the number of the leaf stands in it, and so is one into which the
    arithmetic before it was fused. Hidden values make them alike: leaves of one size share their compiled code.
    The values come out of a loop that makes no turn.

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
    # With one more value each of them moves in a turn: what stays would be known.
    start = (never, [*arrays, *(jnp.zeros_like(array) for array in arrays[:1])])
    return lax.while_loop(lambda carry: carry[0], turn, steady(turn, start))[1][: len(arrays)]
