"""Losses along the lines between pairs of networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.plots._drawing import bare, draw, legend, new_figure, numbers, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_connectivity(lines: Mapping[str, Any], title: str = "", metric: str | None = None) -> Figure:
    """Plots losses along the lines between pairs of networks.

    One panel for each number of the values. Bands are one standard deviation over seeds to both sides.

    Args:
      lines: name -> a `Connectivity`, whose values are arrays (points,), or (seeds, points) under `vmap`.
      title: title of the figure.
      metric: the only number to plot, such as "error"; None plots all.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there are no lines, the lines have different numbers, or there is no such metric.
      ImportError: if matplotlib is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> line = jp.linear_connectivity(lambda w, x: (w**2 - 1) ** 2 * x, jnp.array(-1.0), jnp.array(1.0), [1.0])
      >>> [drawn.get_label() for drawn in jp.plots.plot_connectivity({"two seeds": line}).axes[0].lines]
      ['two seeds']
    """
    found = numbers({name: line.values for name, line in lines.items()}, metric, "lines")
    figure = new_figure(7.6 * len(found), 4.2)
    for label, axes in panels(figure, list(found)).items():
        for i, (name, values) in enumerate(found[label].items()):
            alpha = np.atleast_2d(np.asarray(lines[name].alpha))[0]
            draw(axes, i, name, alpha, np.atleast_2d(values).T)
        axes.set_xlabel("position between the networks")
        axes.set_ylabel("loss" if label == "value" else label)
        bare(axes)
        legend(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
