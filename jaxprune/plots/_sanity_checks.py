"""Sanity checks: what a ticket reaches, and what its control experiments reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.plots._drawing import COLORS, bare, new_figure, numbers, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sanity_checks(results: Mapping[str, Any], title: str = "", metric: str | None = None) -> Figure:
    """Plots what a ticket and its control experiments reach, a row for each of them.

    One panel for each number. Small points are seeds, large ones their means, bars one standard deviation to both
    sides (ddof 1; none for one seed). A dashed line is the mean of "ticket", which comes first.

    Args:
      results: name -> a number or a tree of numbers, as `jp.sanity_checks` returns, or arrays (seeds,) under `vmap`.
        More rows may be added, such as that of the dense network.
      title: title of the figure.
      metric: the only number to plot, such as "accuracy"; None plots all.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there is nothing to plot, a result is no row of seeds, the results have different numbers, or
        there is no such metric.
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> import jaxprune as jp
      >>> results = {"shuffled": np.array([0.90, 0.92]), "ticket": np.array([0.97, 0.96])}
      >>> [label.get_text() for label in jp.plots.plot_sanity_checks(results).axes[0].get_yticklabels()]
      ['ticket', 'shuffled']
    """
    found = numbers(dict(sorted(results.items(), key=lambda item: item[0] != "ticket")), metric, "results")
    figure = new_figure(6 * len(found), 1 + 0.34 * len(results))
    for place, (label, axes) in enumerate(panels(figure, list(found)).items()):
        for row, (name, values) in enumerate(found[label].items()):
            if values.ndim > 1:
                raise ValueError(f"`results`[{name!r}] must be numbers (seeds,), got shape {values.shape}.")
            _row(axes, row, np.ravel(values), COLORS[0] if name == "ticket" else COLORS[1])
        if "ticket" in found[label]:
            axes.axvline(found[label]["ticket"].mean(), color="black", linestyle="--", linewidth=1)
        axes.set_yticks(range(len(results)), list(found[label]) if place == 0 else [])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlabel("result" if label == "value" else label)
        bare(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _row(axes: Any, row: int, values: np.ndarray, color: str) -> None:
    """The seeds of one variant, their mean and spread."""
    spread = np.std(values, ddof=1) if len(values) > 1 else None
    axes.errorbar(values.mean(), row, xerr=spread, fmt="o", color=color, markersize=6, capsize=3)
    if len(values) > 1:
        axes.plot(values, np.full(len(values), row + 0.22), ".", color=color, alpha=0.5, markersize=4)
