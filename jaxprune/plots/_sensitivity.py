"""The sensitivity of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxprune._sensitivity import Sensitivity
from jaxprune.plots._drawing import COLORS, MARKERS, bare, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_sensitivity(table: Sensitivity, title: str = "") -> Figure:
    """Plots the loss against the sparsity of each layer alone, one line for each layer.

    A dashed line is the loss with nothing pruned.

    Args:
      table: the result of `jp.sensitivity`.
      title: title of the figure.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> import jaxprune as jp
      >>> from jaxprune.plots import plot_sensitivity
      >>> table = jp.Sensitivity(("a", "c"), (0.5, 0.9), np.array([[1.0, 2.0], [3.0, 4.0]]), 0.9, (9, 9), (9, 9))
      >>> [line.get_label() for line in plot_sensitivity(table).axes[0].lines][:2]
      ['a', 'c']
    """
    figure = new_figure(7 if len(table.paths) <= 12 else 10, 4.2)
    axes = figure.subplots()
    for i, (path, losses) in enumerate(zip(table.paths, table.losses, strict=True)):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)]
        kept = [100 * (1 - s) for s in (0.0, *table.sparsities)]
        axes.plot(kept, [table.dense, *losses], color=color, marker=marker, markersize=4, label=path)
    axes.axhline(table.dense, color="#7f7f7f", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("weights of the layer kept (%)")
    axes.set_ylabel("loss")
    bare(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
