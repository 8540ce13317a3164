"""Accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.plots._drawing import bare, draw, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_latency(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    level: tuple[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Plots accuracy against latency, the points of a line in their order.

    Args:
      lines: name -> (latency as a share of the dense network's (points,), percent (points, seeds)).
      level: name and accuracy of a dashed horizontal line, such as that of the dense network.
      title: title of the figure.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there are no lines.
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> import jaxprune as jp
      >>> figure = jp.plots.plot_latency({"units": (np.array([0.6, 0.3]), np.array([[97.0], [90.0]]))}, ("dense", 98.0))
      >>> figure.axes[0].get_xlabel()
      'latency (dense = 1)'
    """
    if not lines:
        raise ValueError("`lines` is empty: there is nothing to plot.")
    figure = new_figure(7.6, 4.6)
    axes = figure.subplots()
    for i, (name, (shares, values)) in enumerate(lines.items()):
        draw(axes, i, name, shares, values)
    if level is not None:
        axes.axhline(level[1], color="black", linestyle="--", linewidth=1, label=level[0])
    axes.set_xlim(max(1.05, 1.05 * max(shares.max() for shares, _ in lines.values())), 0)
    axes.set_xlabel("latency (dense = 1)")
    axes.set_ylabel("test accuracy (%)")
    bare(axes)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
