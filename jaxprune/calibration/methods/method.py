"""The protocols of methods and refinements, and how both are applied to the matrices of one weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import numpy as np

from jaxprune.host import is_on_host, to_device
from jaxprune.statistics.moments import Kind
from jaxprune.structures.matrix import MatrixStructure


class Method(Protocol):
    """How the weights of one matrix (inputs, outputs) are pruned, given X^T X of its inputs.

    `moments` says whether the diagonal of X^T X is enough. If it is, only the diagonal may be computed.
    """

    moments: ClassVar[Kind]

    def check(self, structure: MatrixStructure) -> None:
        """Raises an error if the method does not support the structure."""
        ...

    def factorize(self, gram: jax.Array) -> Any:
        """The factorization that all weights of the same inputs share."""
        ...

    def solve(
        self, w: jax.Array, gram: jax.Array, factor: Any, n_pruned: Any, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """Pruned weights and their mask; `n_pruned` counts units of `structure`."""
        ...


class Refinement(Protocol):
    """How pruned weights and their mask are improved, given X^T X."""

    def refine(
        self, w0: jax.Array, gram: jax.Array, w: jax.Array, mask: jax.Array, structure: MatrixStructure
    ) -> tuple[jax.Array, jax.Array]:
        """Weights and mask whose error on X^T X is not larger than before."""
        ...


def over_groups(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Maps `fn` over the groups; a single group is not mapped over, which compiles to better code."""

    def apply(*args: Any) -> Any:
        if jax.tree.leaves(args)[0].shape[0] != 1:
            return jax.vmap(fn)(*args)
        first = jax.tree.map(lambda x: _reindexed(x, 0), args)
        return jax.tree.map(lambda x: _reindexed(x, None), fn(*first))

    return apply


def _reindexed(x: Any, index: Any) -> Any:
    """`x[index]`, on the host if x is there: JAX compiles a program for each shape."""
    return to_device(np.asarray(x)[index, ...], x) if is_on_host(x) else x[index]
