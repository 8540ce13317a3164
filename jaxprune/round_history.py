"""The history of an experiment: a row for each training."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.lookahead import weights_of
from jaxprune.masking.share import kept_per_leaf, total_count
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.tables import table_text


class Round(NamedTuple):
    """One row of the history: a training under one set of masks. Printing it shows a table.

    round: 0 is the dense training; sparsity: float32, pruned / prunable; kept: number of kept prunable weights
    (int32; float32 beyond 2^31); metrics: those of the last training step; evaluation: `evaluate(state)` at the
    end; curve: `evaluate(state)` every `every` steps, stacked (NaN, or 0 for integers, at steps that the round
    did not run); masks: with `keep_masks` only.
    """

    round: jax.Array
    sparsity: jax.Array
    kept: jax.Array
    metrics: PyTree
    evaluation: PyTree
    curve: PyTree
    masks: PyTree

    def __str__(self) -> str:
        fields = zip(self._fields, self, strict=True)
        if not _is_known(self.sparsity):
            return f"Round({', '.join(f'{name}={value!r}' for name, value in fields)})"
        scalars = {
            **{
                f"training {name}": values for name, values in numbers_of(self.metrics, self.sparsity).items()
            },
            **numbers_of(self.evaluation, self.sparsity),
        }
        sparsity = _by_run(self.sparsity)
        kept, number = (
            _by_run(x) if _is_known(x) else np.full_like(sparsity, np.nan) for x in (self.kept, self.round)
        )
        rows = []
        for runs in equal_runs(self.sparsity):
            for i in range(sparsity.shape[1]):
                values = [_mean_text(numbers[runs, i]) for numbers in scalars.values()]
                at = runs[0], i
                rows.append((f"{number[at]:.0f}", f"{sparsity[at]:.4f}", f"{kept[at]:,.0f}", *values))
        columns = ("round", "sparsity", "kept", *scalars)
        return table_text(columns, rows, numbers=columns)

    __repr__ = __str__


def equal_runs(sparsity: jax.Array | np.ndarray) -> list[np.ndarray]:
    """The runs of a history under `vmap`, those of equal sparsities together: the seeds of one experiment.

    Args:
      sparsity: (..., rounds), that of a history; leading axes are those of `vmap`.

    Returns:
      Indices into the flattened leading axes, the densest runs first.
    """
    _, group = np.unique(_by_run(sparsity), axis=0, return_inverse=True)
    group = np.ravel(group)
    return [np.flatnonzero(group == i) for i in range(group.max() + 1)]


def numbers_of(tree: PyTree, sparsity: jax.Array | np.ndarray) -> dict[str, np.ndarray]:
    """Path -> (runs, rounds) for the leaves of metrics or evaluations that are one real number for each training."""
    paths, leaves, _ = flatten_with_paths(tree)
    return {
        path: _by_run(values)
        for path, values in zip(paths, leaves, strict=True)
        if np.shape(values) == np.shape(sparsity) and _is_known(values) and _is_real(values)
    }


def _by_run(values: jax.Array | np.ndarray) -> np.ndarray:
    values = np.atleast_1d(np.asarray(values))
    return values.reshape(-1, values.shape[-1]).astype(float)


def _is_known(values: Any) -> bool:
    if isinstance(values, jax.Array) and not isinstance(values, jax.core.Tracer):
        return values.is_fully_addressable and not values.is_deleted()
    return isinstance(values, np.ndarray | np.generic)


def _is_real(values: jax.Array | np.ndarray) -> bool:
    return any(
        jnp.issubdtype(jnp.result_type(values), kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)
    )


def _mean_text(values: np.ndarray) -> str:
    spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
    return f"{np.mean(values):.4g}{spread}"


def row_of(
    round: jax.Array,
    params: PyTree,
    masks: PyTree,
    metrics: PyTree,
    evaluation: PyTree,
    curve: PyTree,
    shown: PyTree,
) -> Round:
    """The row of a training under these masks; `shown` are those to store."""
    params = weights_of(params)
    kept, total = kept_per_leaf(params, weights_of(masks))
    sizes = [jnp.size(w) for w in jax.tree.leaves(params)]
    most = sum(size for size, n in zip(sizes, total, strict=True) if n is not None)
    left = total_count([k for k in kept if k is not None], jnp.int32 if most < 2**31 else jnp.float32)
    # 1 - kept / whole would lose the digits of a high density's small sparsity.
    pruned = total_count([n - k for k, n in zip(kept, total, strict=True) if n is not None])
    whole = total_count([n for n in total if n is not None])
    return Round(round, pruned / whole, left, metrics, evaluation, curve, shown)
