"""Learning curves, and accuracy against latency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.plots import _draw, _figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curves = Mapping[str, tuple[np.ndarray, np.ndarray]]


def plot_curves(panels: Mapping[str, Curves], title: str = "") -> Figure:
    """Plots learning curves: accuracy against the training step, a panel for each group of lines.

    Args:
      panels: title of a panel -> name of a line -> (steps (points,), percent (points, seeds)).
      title: title of the figure.
    """
    figure = _figure(4.6 * len(panels) + 1.6, 4.2)
    order = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    all_axes = np.ravel(figure.subplots(1, len(panels), sharey=True))
    shown = {}
    for axes, (panel, lines) in zip(all_axes, panels.items(), strict=True):
        for name, (steps, values) in lines.items():
            _draw(axes, order.index(name), name, steps, values)
        shown |= dict(zip(lines, axes.lines, strict=True))
        axes.set_title(panel, fontsize=10)
        _plain_axes(axes, "training step", "test accuracy (%)")
    all_axes[-1].legend(
        [shown[name] for name in order], order, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def plot_latency(lines: Curves, level: tuple[str, float] | None = None, title: str = "") -> Figure:
    """Plots accuracy against latency.

    Args:
      lines: name -> (latency as a share of the dense network's (points,), percent (points, seeds)).
      level: name and accuracy of a dashed horizontal line, such as that of the dense network.
      title: title of the figure.
    """
    figure = _figure(7.6, 4.6)
    axes = figure.subplots()
    for i, (name, (shares, values)) in enumerate(lines.items()):
        order = np.argsort(-shares)
        _draw(axes, i, name, shares[order], values[order])
    if level is not None:
        axes.axhline(level[1], color="black", linestyle="--", linewidth=1, label=level[0])
    axes.set_xlim(max(1.05, 1.05 * max(shares.max() for shares, _ in lines.values())), 0)
    _plain_axes(axes, "latency (dense = 1)", "test accuracy (%)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _plain_axes(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
