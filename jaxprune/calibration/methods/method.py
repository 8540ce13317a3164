"""What a method and a refinement are, and how they meet the matrices of one weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax

from jaxprune.statistics.moments import Kind
from jaxprune.structures.matrix import MatrixStructure


class Method(Protocol):
    """How the weights of one matrix (inputs, outputs) are pruned, given X^T X of its inputs.

    `moments` says whether the diagonal of X^T X is enough: it may then be all that there is.
    """

    moments: ClassVar[Kind]

    def check(self, structure: MatrixStructure) -> None:
        """Raises for a structure that the method can't do."""
        ...

    def factorize(self, gram: jax.Array) -> Any:
        """What all weights of the same inputs share."""
        ...

    def solve(
        self, w: jax.Array, gram: jax.Array, factor: Any, n_pruned: Any, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """Pruned weights and their mask; `n_pruned` counts units of `structure`."""
        ...


class Refinement(Protocol):
    """How pruned weights and their mask are made better, given X^T X."""

    def refine(
        self, w0: jax.Array, gram: jax.Array, w: jax.Array, mask: jax.Array, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """Weights and mask whose error on X^T X is no larger."""
        ...


def over_groups(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` on each group; a single one is not mapped over, which compiles to better code."""

    def apply(*args: Any) -> Any:
        if jax.tree.leaves(args)[0].shape[0] != 1:
            return jax.vmap(fn)(*args)
        first = jax.tree.map(lambda x: x[0], args)
        return jax.tree.map(lambda x: x[None], fn(*first))

    return apply
