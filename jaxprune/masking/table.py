"""A table of the pruned and kept weights of each parameter."""

from __future__ import annotations

import dataclasses
import math

import jax
import rich.box
import rich.table

from jaxprune.masking.share import kept_per_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.tables import as_text


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """One parameter: its path, shape, number of kept weights (None: not prunable) and number of all weights."""

    path: str
    shape: tuple[int, ...]
    kept: int | None
    total: int

    @property
    def sparsity(self) -> float | None:
        """Fraction of pruned weights; None if the leaf is not prunable."""
        if self.kept is None:
            return None
        return 1 - self.kept / self.total if self.total else 0.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """One row per parameter; printing it shows a table."""

    rows: tuple[LayerSummary, ...]

    @property
    def kept(self) -> int:
        """Number of prunable weights that are kept."""
        return sum(row.kept for row in self.rows if row.kept is not None)

    @property
    def prunable(self) -> int:
        """Number of prunable weights, pruned ones included."""
        return sum(row.total for row in self.rows if row.kept is not None)

    @property
    def total(self) -> int:
        """Number of all weights."""
        return sum(row.total for row in self.rows)

    def __str__(self) -> str:
        table = rich.table.Table(box=rich.box.SIMPLE, show_footer=True, show_edge=False, pad_edge=False)
        pruned = f"{1 - self.kept / self.prunable:.2%}" if self.prunable else "-"
        table.add_column("parameter", footer="prunable")
        table.add_column("shape", footer="")
        table.add_column("weights", footer=f"{self.prunable:,}", justify="right")
        table.add_column("kept", footer=f"{self.kept:,}", justify="right")
        table.add_column("sparsity", footer=pruned, justify="right")
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            kept = "-" if row.kept is None else f"{row.kept:,}"
            share = "-" if row.sparsity is None else f"{row.sparsity:.2%}"
            table.add_row(row.path, shape, f"{row.total:,}", kept, share)
        return as_text(table, width=120)

    __repr__ = __str__


def summary(params: PyTree, masks: PyTree) -> Summary:
    """A printable table of the kept weights of each parameter.

    Args:
      params: pytree of arrays.
      masks: the masks of these parameters.

    Returns:
      A `Summary`; `rows` holds the numbers.

    Raises:
      ValueError: if the trees don't match, or masks are traced (a table needs known numbers).

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}
      >>> print(jp.summary(params, {"kernel": jnp.array([[True, False, True, True]]), "bias": True}))
      parameter   shape   weights   kept   sparsity
      ─────────────────────────────────────────────
      bias        4             4      -          -
      kernel      2x4           8      6     25.00%
      ─────────────────────────────────────────────
      prunable                  8      6     25.00%
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, masks))):
        raise ValueError(
            "`masks` must be known values for a table, got traced arrays: call `summary` outside of jit."
        )
    paths, leaves, _ = flatten_with_paths(params)
    kept, _ = kept_per_leaf(params, masks)
    rows = []
    for path, leaf, left in zip(paths, leaves, kept, strict=True):
        shape = tuple(getattr(leaf, "shape", ()))
        rows.append(LayerSummary(path, shape, left, math.prod(shape)))
    return Summary(tuple(rows))
