"""The accuracy of several methods at several sparsities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxprune.plots._drawing import draw, kept_axis, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_accuracy(
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    level: tuple[str, float] | None = None,
    title: str = "",
) -> Figure:
    """Plots accuracy against the fraction of kept weights, one line for each method.

    Points are means over seeds. Bands are one standard deviation to both sides (ddof 1; no band for one seed).

    Args:
      lines: name -> (kept, accuracy): percent of the weights (points,), percent of the images
        (points, seeds).
      level: name and accuracy of a dashed horizontal line, such as that of the dense network.
      title: title of the figure.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there are no lines, or the arrays of a line don't fit together.
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> from jaxprune.plots import plot_accuracy
      >>> figure = plot_accuracy({"gmp": (np.array([10.0, 1.0]), np.array([[97.0], [90.0]]))}, ("dense", 98.0))
      >>> [line.get_label() for line in figure.axes[0].lines]
      ['gmp', 'dense']
    """
    if not lines:
        raise ValueError("`lines` is empty: there is nothing to plot.")
    for name, (kept, accuracy) in lines.items():
        if np.ndim(kept) != 1 or np.ndim(accuracy) != 2 or len(kept) != len(accuracy):
            raise ValueError(
                f"`lines`[{name!r}] must have kept (points,) and accuracy (points, seeds), "
                f"got {np.shape(kept)} and {np.shape(accuracy)}."
            )
    figure = new_figure(7.6, 4.6)
    axes = figure.subplots()
    for i, (name, (kept, accuracy)) in enumerate(lines.items()):
        order = np.argsort(-kept)
        draw(axes, i, name, kept[order], accuracy[order])
    if level is not None:
        axes.axhline(level[1], color="black", linestyle="--", linewidth=1, label=level[0])
    kept_axis(axes, np.concatenate([kept for kept, _ in lines.values()]), "test accuracy (%)")
    legend(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
