"""What all plots share: figures without a window, lines with bands, axes, and the numbers of a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.params import flatten_with_paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#7f7f7f", "#009e73", "#cc79a7")
MARKERS = ("o", "s", "^", "D", "v")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'jaxprune[plots]'.") from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw(axes: Any, i: int, name: str, at: np.ndarray, values: np.ndarray) -> None:
    """Draws line `i`: the mean of values (points, seeds), and its band."""
    # Beyond as many lines as there are colours the same colour has another marker and dashes.
    color, turn = COLORS[i % len(COLORS)], i // len(COLORS)
    marker = MARKERS[(i + turn) % len(MARKERS)]
    style = ("-", "--", ":")[turn % 3]
    mean = np.mean(values, axis=1)
    axes.plot(at, mean, color=color, marker=marker, markersize=4, linewidth=1.6, linestyle=style, label=name)
    if values.shape[1] > 1:
        spread = np.std(values, axis=1, ddof=1)
        axes.fill_between(at, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)


def kept_axis(axes: Any, kept: np.ndarray, label: str) -> None:
    """Makes the horizontal axis the percentage of kept weights, logarithmic and descending to the right."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    positive = kept[kept > 0]  # 0 has no place on a logarithmic axis
    if positive.size:
        axes.set_xscale("log")
    kept = positive if positive.size else np.array([100.0])
    ticks = [
        t for t in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if kept.min() * 0.95 <= t <= kept.max() * 1.05
    ]
    axes.set_xlim(kept.max() * 1.08, kept.min() / 1.08)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("weights kept (%)")
    axes.set_ylabel(label)
    bare(axes)


def step_axis(axes: Any, steps: Sequence[int], label: str, name: str) -> None:
    """Makes the horizontal axis steps of a training, logarithmic from the first positive one, with 0 at the left."""
    from matplotlib.ticker import FixedLocator, NullLocator

    positive = [step for step in steps if step > 0]
    if len(positive) > 1:
        axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
        axes.set_xlim(min(steps) - 0.15 * positive[0], max(steps) * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(list(steps)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(label)
    axes.set_ylabel(name)
    bare(axes)


def legend(axes: Any, *of: Any) -> None:
    """The names of the lines, or of these handles and labels, to the right of the axes."""
    axes.legend(*of, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def bare(axes: Any) -> None:
    """A light grid and no frame."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def panels(figure: Figure, names: Sequence[str]) -> dict[str, Any]:
    """Axes side by side, one for each name."""
    return dict(zip(names, np.ravel(figure.subplots(1, len(names))), strict=True))


def numbers(trees: Mapping[str, Any], metric: str | None, argument: str) -> dict[str, dict[str, np.ndarray]]:
    """Metric -> line -> array, from a tree of arrays for each line; an array alone is the metric "value".

    Raises:
      ValueError: nothing to plot, trees of other metrics, or no such metric.
    """
    if not trees:
        raise ValueError(f"`{argument}` is empty: there is nothing to plot.")
    found: dict[str, dict[str, np.ndarray]] = {}
    wanted = None
    for name, tree in trees.items():
        paths, leaves, _ = flatten_with_paths(tree)
        paths = [path or "value" for path in paths]
        wanted = paths if wanted is None else wanted
        if paths != wanted or not paths:
            raise ValueError(
                f"`{argument}` must have the same numbers in each line, got {paths} for {name!r} and {wanted} before."
            )
        for path, leaf in zip(paths, leaves, strict=True):
            found.setdefault(path, {})[name] = np.asarray(leaf, float)
    if metric is None:
        return found
    if metric not in found:
        raise ValueError(f"`metric` must be one of {sorted(found)}, got {metric!r}.")
    return {metric: found[metric]}
