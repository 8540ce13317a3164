"""Instability to the noise of SGD: the barrier against the step of the split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.plots._drawing import draw, legend, new_figure, numbers, panels, step_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_instability(
    lines: Mapping[str, Any],
    level: tuple[str, float] | None = None,
    title: str = "",
    metric: str | None = None,
) -> Figure:
    """Plots the barrier between two copies of a network against the step at which they part.

    One panel for each number of `evaluate`. Points are means over seeds. Bands are one standard deviation to both
    sides (ddof 1; no band for one seed).

    Args:
      lines: name -> `Instabilities`, such as those of the dense network and of tickets, with a leading axis of seeds
        under `vmap`.
      level: name and height of a dashed horizontal line, such as the rise up to which a network counts as stable.
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
      >>> from jaxprune.tickets import Instabilities
      >>> rows = Instabilities(jnp.array([0, 10, 100]), None, None, {"error": jnp.array([0.3, 0.1, 0.0])})
      >>> [axes.get_ylabel() for axes in jp.plots.plot_instability({"dense": rows}).axes]
      ['barrier of error']
    """
    found = numbers({name: line.barrier for name, line in lines.items()}, metric, "lines")
    figure = new_figure(7.6 * len(found), 4.2)
    for label, axes in panels(figure, list(found)).items():
        steps: set[int] = set()
        for i, (name, values) in enumerate(found[label].items()):
            split = np.atleast_2d(np.asarray(lines[name].split))[0]
            draw(axes, i, name, split, np.atleast_2d(values).T)
            steps |= {int(step) for step in split}
        if level is not None:
            axes.axhline(level[1], color="black", linestyle="--", linewidth=1, label=level[0])
        step_axis(
            axes, sorted(steps), "step of the split", "barrier" if label == "value" else f"barrier of {label}"
        )
        legend(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
