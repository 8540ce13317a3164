"""The errors of layers and windows after calibration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.plots._drawing import COLORS, MARKERS, bare, legend, new_figure, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 24  # layers whose paths fit below the axis


def layer_errors(log: Iterable[Any] | Mapping[str, Iterable[Any]], title: str = "") -> Figure:
    """Plots the error of each layer, in the order in which the layers were pruned; one line for each log.

    If there are results of windows, a second panel shows their errors after `Refit`, and dotted those before it.

    Args:
      log: a `jp.LayerLog`, or other results that `on_layer` was called with; or name -> log.
      title: title of the figure.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there are no results.
      ImportError: if matplotlib is missing.

    Example:
      >>> import jaxprune as jp
      >>> from jaxprune.calibration import LayerResult
      >>> rows = [LayerResult("up", 0.1, 0.5), LayerResult("down", 0.2, 0.5)]
      >>> (axes,) = jp.plots.layer_errors({"SparseGPT": rows, "ADMM": rows}).axes
      >>> [line.get_label() for line in axes.lines]
      ['SparseGPT', 'ADMM']
      >>> [tick.get_text() for tick in axes.get_xticklabels()]
      ['up', 'down']
    """
    logs = {name: list(rows) for name, rows in (log if isinstance(log, Mapping) else {"": log}).items()}
    layers = {name: [row for row in rows if not hasattr(row, "before")] for name, rows in logs.items()}
    windows = {name: [row for row in rows if hasattr(row, "before")] for name, rows in logs.items()}
    found = {"layer": layers, "window": windows}
    found = {label: lines for label, lines in found.items() if any(lines.values())}
    if not found:
        raise ValueError(
            "`log` holds no results: pass it as `on_layer=log` to a function of calibration first."
        )
    figure = new_figure(6.5 * len(found), 4.2)
    for label, axes in panels(figure, list(found)).items():
        lines = {name: rows for name, rows in found[label].items() if rows}
        for i, (name, rows) in enumerate(found[label].items()):  # a log has one color in both panels
            if not rows:
                continue
            color, marker = COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)]
            at = np.arange(len(rows))
            axes.plot(at, [row.error for row in rows], color=color, marker=marker, markersize=4, label=name)
            if label == "window":
                before = [row.before for row in rows]
                axes.plot(
                    at, before, color=color, linestyle=":", marker=marker, markersize=3, label="_before"
                )
        _name(axes, label, list(lines.values()))
    if len(logs) > 1:
        every = max((axes.get_legend_handles_labels() for axes in figure.axes), key=lambda of: len(of[1]))
        legend(figure.axes[-1], *every)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _name(axes: Any, label: str, lines: Sequence[Sequence[Any]]) -> None:
    """Labels the axes: with paths if they are few and the same in all lines, else with numbers."""
    paths = [row.path for row in lines[0]]
    if len(paths) <= _NAMED and all([row.path for row in rows] == paths for rows in lines):
        axes.set_xticks(range(len(paths)), paths, rotation=90, fontsize=7)
    else:
        axes.set_xlabel(label)
    values = [value for rows in lines for row in rows for value in (row.error, getattr(row, "before", 0))]
    if any(np.isfinite(value) and value > 0 for value in values):
        axes.set_yscale("log")
    axes.set_ylabel(f"relative error of each {label}")
    bare(axes)
