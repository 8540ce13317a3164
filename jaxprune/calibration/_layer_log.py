"""The results of layers and windows as a table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxprune.calibration.engine.results import LayerResult, WindowResult
from jaxprune.tables import Row, folded_places, table_text, times


class LayerLog:
    """Collects what calibration tells of each layer: pass one as `on_layer`. Printing it shows a table.

    The table has a row for each weight with its sparsity and the error of its layer, and a row for each window of
    `Refit` with its error before and after. Layers that are alike have one row, with the mean and the largest error.
    It iterates over the results.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
      >>> batches = [jax.random.normal(jax.random.key(1), (32, 8))]
      >>> log = jp.LayerLog()
      >>> pruned, masks = jp.reconstruct(lambda params, x: x @ params["w"], params, batches, 0.5, on_layer=log)
      >>> [(row.path, row.sparsity, row.error < 0.2) for row in log]
      [('w', 0.5, True)]
      >>> log.layers[0] == log[0], len(log.windows)
      (True, 0)
    """

    def __init__(self) -> None:
        self._rows: list[LayerResult | WindowResult] = []

    def __call__(self, row: LayerResult | WindowResult) -> None:
        """Takes the result of a layer or of a window."""
        self._rows.append(row)

    def __iter__(self) -> Iterator[LayerResult | WindowResult]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> LayerResult | WindowResult:
        return self._rows[i]

    @property
    def layers(self) -> list[LayerResult]:
        """The results of weights."""
        return [row for row in self._rows if isinstance(row, LayerResult)]

    @property
    def windows(self) -> list[WindowResult]:
        """The results of windows."""
        return [row for row in self._rows if isinstance(row, WindowResult)]

    def __str__(self) -> str:
        if not self._rows:
            return "no layers"
        return "\n\n".join(_table(rows) for rows in (self.layers, self.windows) if rows)

    __repr__ = __str__


def _table(rows: list[LayerResult] | list[WindowResult]) -> str:
    """The rows of one kind as a table; layers that are alike have one."""
    lines = []
    for row, places in folded_places(
        Row(tuple(row.path.split(", ")), (f"{row.sparsity:.4f}",)) for row in rows
    ):
        mine = [rows[i] for i in places]
        before = [row.before for row in mine if isinstance(row, WindowResult)]
        errors = [row.error for row in mine]
        name = times(", ".join(row.paths), len(places))
        largest = _text([max(errors)]) if len(errors) > 1 else ""
        lines.append((name, *row.cells, *([_text(before)] if before else []), _text(errors), largest))
    columns = ["window", "sparsity", "before", "error", "largest"]
    if isinstance(rows[0], LayerResult):
        columns = ["layer", "sparsity", "error", "largest"]
    if not any(line[-1] for line in lines):
        columns, lines = columns[:-1], [line[:-1] for line in lines]
    return table_text(columns, lines, numbers=columns[1:])


def _text(errors: list[float]) -> str:
    return f"{np.mean(errors):.4g}"
