"""Tickets: accuracy and the step of minimum validation loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxprune.plots._drawing import draw, kept_axis, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Line(NamedTuple):
    """The results of one method at several sparsities.

    kept: (points,) percent of the weights; accuracy: (points, seeds) percent; stop: (points, seeds) steps.
    """

    kept: np.ndarray
    accuracy: np.ndarray
    stop: np.ndarray


def plot_tickets(lines: Mapping[str, Line], title: str = "") -> Figure:
    """Plots accuracy, and the step of minimum validation loss, against the fraction of kept weights.

    Points are means over seeds. Bands are one standard deviation to both sides (ddof 1; no band for one seed).

    Args:
      lines: name -> `Line`; the names are the legend.
      title: title of the figure, above both panels.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there are no lines, or the arrays of a line don't fit together.
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> from jaxprune.plots import Line, plot_tickets
      >>> kept = np.array([100.0, 50.0, 25.0])
      >>> line = Line(kept, np.full((3, 2), 97.0), np.full((3, 2), 1000))
      >>> [axes.get_ylabel() for axes in plot_tickets({"ticket": line}).axes]
      ['test accuracy (%)', 'early-stop step']
    """
    if not lines:
        raise ValueError("`lines` is empty: there is nothing to plot.")
    for name, line in lines.items():
        shapes = np.shape(line.kept), np.shape(line.accuracy), np.shape(line.stop)
        if len(shapes[0]) != 1 or len(shapes[1]) != 2 or shapes[1] != shapes[2] or shapes[1][:1] != shapes[0]:
            raise ValueError(
                f"`lines`[{name!r}] must have kept (points,), accuracy and stop (points, seeds), "
                f"got {shapes}."
            )
    figure = new_figure(10, 4.2)
    panels = figure.subplots(1, 2)
    for i, (name, line) in enumerate(lines.items()):
        for axes, values in zip(panels, (line.accuracy, line.stop), strict=True):
            draw(axes, i, name, line.kept, values)
    kept = np.concatenate([line.kept for line in lines.values()])
    for axes, label in zip(panels, ("test accuracy (%)", "early-stop step"), strict=True):
        kept_axis(axes, kept, label)
    panels[0].legend(frameon=False, loc="lower left")
    panels[1].set_ylim(bottom=0)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
