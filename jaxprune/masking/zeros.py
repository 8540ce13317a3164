"""Zeros in a tree that has no masks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.params import PyTree, flatten_with_paths, is_float_array, prunable_leaves
from jaxprune.tables import table_text


class Zeros(NamedTuple):
    """Entries that are exactly zero; printing it shows a table.

    zeros, size: number of zeros and of all entries; leaves: path -> (zeros, size).
    """

    zeros: int
    size: int
    leaves: dict[str, tuple[int, int]]

    @property
    def sparsity(self) -> float:
        """The fraction that is zero."""
        return self.zeros / self.size if self.size else 0.0

    def __str__(self) -> str:
        rows = [
            (path, f"{n:,}", f"{zeros:,}", _percent(zeros, n)) for path, (zeros, n) in self.leaves.items()
        ]
        total = ("in all", f"{self.size:,}", f"{self.zeros:,}", _percent(self.zeros, self.size))
        columns = ("leaf", "entries", "zeros", "sparsity")
        return table_text(columns, [*rows, total], numbers=columns[1:])

    __repr__ = __str__


def count_zeros(tree: PyTree, where: Any = None) -> Zeros:
    """Counts the entries that are exactly zero: the sparsity of a tree without masks, such as a loaded model or an EMA.

    Args:
      tree: pytree of arrays.
      where: the leaves to count: a tree of bools, a prefix of one, or a function of the tree that returns one; None for
        `prunable(tree)`.

    Returns:
      A `Zeros` with exact counts.

    Raises:
      ValueError: if `where` does not match, or there is no leaf to count.
      TypeError: under `jit`, where no array is known.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> found = jp.count_zeros({"kernel": jnp.array([[1.0, 0.0], [0.0, 0.0]]), "bias": jnp.zeros(2)})
      >>> found.zeros, found.size, found.sparsity
      (3, 4, 0.75)
    """
    paths, leaves, _ = flatten_with_paths(tree)
    counts: dict[str, tuple[int, int]] = {}
    for i in prunable_leaves(tree, where):
        if not is_float_array(leaves[i]):
            raise ValueError(f"`where` must choose float arrays, got {paths[i]!r} besides.")
        if isinstance(leaves[i], Tracer):
            raise TypeError(
                f"`tree` must hold known arrays, got a traced one at {paths[i]!r}: count outside of jit."
            )
        zero = _is_zero(leaves[i])
        # A row's count fits 32 bits; their sum is taken on the host.
        rows = zero.sum(axis=-1, dtype=np.int32) if zero.ndim else zero.astype(np.int32)
        counts[paths[i]] = int(np.asarray(rows).sum(dtype=np.int64)), zero.size
    zeros, size = (sum(column) for column in zip(*counts.values(), strict=True)) if counts else (0, 0)
    return Zeros(zeros, size, counts)


def _is_zero(x: Any) -> Any:
    """Which entries are 0 or -0: by NumPy, or from their bits, since XLA's comparison takes denormals for 0."""
    bits = jnp.finfo(x.dtype).bits
    if isinstance(x, np.ndarray) or bits not in (8, 16, 32, 64):
        return x == 0
    unsigned = f"uint{bits}"
    found = jax.lax.bitcast_convert_type(x, unsigned)
    zeros = [np.array(sign * 0.0, x.dtype).view(unsigned)[()] for sign in (1, -1)]
    return (found == zeros[0]) | (found == zeros[1])


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
