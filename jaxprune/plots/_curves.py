"""Learning curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.plots._drawing import bare, draw, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_curves(panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], title: str = "") -> Figure:
    """Plots learning curves: accuracy against the training step, a panel for each group of lines.

    Args:
      panels: title of a panel -> name of a line -> (steps (points,), percent (points, seeds)).
      title: title of the figure.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there are no panels, or one has no lines.
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> import jaxprune as jp
      >>> curve = np.array([10, 20]), np.array([[90.0], [95.0]])
      >>> figure = jp.plots.plot_curves({"90 %": {"gradual": curve, "one-shot": curve}})
      >>> figure.axes[0].get_title(), [line.get_label() for line in figure.axes[0].lines]
      ('90 %', ['gradual', 'one-shot'])
    """
    if not panels or not all(panels.values()):
        raise ValueError("`panels` must have a line in each panel: there is nothing to plot.")
    figure = new_figure(4.6 * len(panels) + 1.6, 4.2)
    order = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    all_axes = np.ravel(figure.subplots(1, len(panels), sharey=True))
    shown = {}
    for axes, (panel, lines) in zip(all_axes, panels.items(), strict=True):
        for name, (steps, values) in lines.items():
            draw(axes, order.index(name), name, steps, values)
        shown |= dict(zip(lines, axes.lines, strict=True))
        axes.set_title(panel, fontsize=10)
        axes.set_xlabel("training step")
        axes.set_ylabel("test accuracy (%)")
        bare(axes)
    all_axes[-1].legend(
        [shown[name] for name in order], order, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
