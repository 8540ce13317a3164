"""What each round of removal left and reached, as arrays over the rounds that print as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.tables import table_text

Values = dict[str, np.ndarray]


class Row(NamedTuple):
    """One round; the fields are those of `History`."""

    sparsity: float
    parameters: int
    flops: int
    steps: int
    metrics: Values
    evaluation: Values


class History(NamedTuple):
    """The rounds of `shrink_in_rounds`; printing it shows a table.

    Attributes:
      sparsity: what was to be removed in all, as a fraction; 0 for the dense round 0.
      parameters: number of entries of `state.params`.
      flops: floating-point operations of the function's products at the example inputs, two a multiply-add.
      steps: number of training steps.
      metrics: path -> the metrics of the last training step, NaN where a round has none.
      evaluation: path -> what `evaluate` returned after the training.
      plan: in the history of a recipe, what all rounds removed, for the full parameters, so that
        `history.plan.compact(fn)` is the small function. None in that of `shrink_in_rounds`, which returns it too.
    """

    sparsity: np.ndarray
    parameters: np.ndarray
    flops: np.ndarray
    steps: np.ndarray
    metrics: Values
    evaluation: Values
    plan: Any = None

    def __str__(self) -> str:
        counts = ("round", "sparsity", "parameters", "FLOPs", "steps")
        scalars = [
            (f"{prefix}{name}", values)
            for prefix, of in (("training ", self.metrics), ("", self.evaluation))
            for name, values in of.items()
            if values.ndim == 1
        ]
        columns = (*counts, *(name for name, _ in scalars))
        rows = [
            (
                str(r),
                f"{self.sparsity[r]:.3f}",
                f"{self.parameters[r]:,}",
                f"{self.flops[r]:,}",
                str(self.steps[r]),
                *(f"{float(values[r]):.4g}" for _, values in scalars),
            )
            for r in range(len(self.sparsity))
        ]
        return table_text(columns, rows, numbers=columns)

    __repr__ = __str__


def history_of(rows: Sequence[Row]) -> History:
    """The rows as arrays over the rounds."""
    return History(
        np.asarray([row.sparsity for row in rows]),
        np.asarray([row.parameters for row in rows]),
        np.asarray([row.flops for row in rows]),
        np.asarray([row.steps for row in rows]),
        _stacked([row.metrics for row in rows]),
        _stacked([row.evaluation for row in rows]),
    )


def values_of(tree: PyTree, source: str) -> Values:
    """Path -> NumPy array, for each leaf of metrics; a number alone has the path "value".

    Raises:
      TypeError: if a leaf is neither a real number nor an array of such; `source` names where it comes from.
    """
    out = {}
    for path, leaf in zip(*flatten_with_paths(tree)[:2], strict=True):
        array = leaf if isinstance(leaf, str) else np.asarray(leaf)
        if isinstance(array, str) or not (
            array.dtype == bool or jnp.isdtype(array.dtype, ("integral", "real floating"))
        ):
            raise TypeError(f"{source} must return real numbers or arrays of them, got {leaf!r} at {path!r}.")
        out[path or "value"] = array
    return out


def as_json(row: Row) -> dict[str, Any]:
    """The row as numbers and lists."""
    return {**row._asdict(), "metrics": _listed(row.metrics), "evaluation": _listed(row.evaluation)}


def of_json(row: dict[str, Any]) -> Row:
    """The row that `as_json` made these of."""
    arrays = {
        field: {name: np.asarray(values, jnp.dtype(dtype)) for name, (dtype, values) in row[field].items()}
        for field in ("metrics", "evaluation")
    }
    return Row(**{**row, **arrays})


def _listed(values: Values) -> dict[str, Any]:
    return {name: [str(value.dtype), value.tolist()] for name, value in values.items()}


def _stacked(rows: Sequence[Values]) -> Values:
    names = dict.fromkeys(name for row in rows for name in row)
    out = {}
    for name in names:
        some = next(row[name] for row in rows if name in row)
        missing = np.full(some.shape, np.nan)
        out[name] = np.stack([row.get(name, missing) for row in rows])
    return out
