"""Plots, with matplotlib's object interface: no state, no window, no backend to choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxprune._sensitivity import Sensitivity
from jaxprune.params import flatten_with_paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Line", "history", "plot_accuracy", "plot_connectivity", "plot_sensitivity", "plot_tickets"]


def __dir__() -> list[str]:
    return sorted(__all__)


_COLORS = ("#0072b2", "#d55e00", "#7f7f7f", "#009e73", "#cc79a7")
_MARKERS = ("o", "s", "^", "D", "v")


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
    figure = _figure(10, 4.2)
    panels = figure.subplots(1, 2)
    for i, (name, line) in enumerate(lines.items()):
        for axes, values in zip(panels, (line.accuracy, line.stop), strict=True):
            _draw(axes, i, name, line.kept, values)
    kept = np.concatenate([line.kept for line in lines.values()])
    for axes, label in zip(panels, ("test accuracy (%)", "early-stop step"), strict=True):
        _kept_axis(axes, kept, label)
    panels[0].legend(frameon=False, loc="lower left")
    panels[1].set_ylim(bottom=0)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


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
    figure = _figure(7.6, 4.6)
    axes = figure.subplots()
    for i, (name, (kept, accuracy)) in enumerate(lines.items()):
        order = np.argsort(-kept)
        _draw(axes, i, name, kept[order], accuracy[order])
    if level is not None:
        axes.axhline(level[1], color="black", linestyle="--", linewidth=1, label=level[0])
    _kept_axis(axes, np.concatenate([kept for kept, _ in lines.values()]), "test accuracy (%)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def history(history: Any, title: str = "") -> Figure:
    """Plots what an experiment measured at the end of each training against the fraction of kept weights.

    One panel for each number of `evaluate`; without it, for each of the metrics of the last training step. With a
    leading axis of seeds (`jax.vmap(experiment.run)`) points are means and bands one standard deviation.

    Args:
      history: of `jp.imp` or `Recipe.experiment`.
      title: title of the figure.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there is no number to plot.
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> import jaxprune as jp
      >>> from jaxprune.round_history import Round
      >>> rows = Round(np.arange(3), np.array([0, 0.5, 0.75]), None, {}, {"loss": np.array([0.2, 0.1, 0.3])}, (), ())
      >>> [axes.get_ylabel() for axes in jp.plots.history(rows).axes]
      ['loss']
    """
    source = history.evaluation if jax.tree.leaves(history.evaluation) else history.metrics
    paths, leaves, _ = flatten_with_paths(source)
    sparsity = np.atleast_2d(np.asarray(history.sparsity))
    found = {
        path or "evaluation": np.reshape(np.asarray(values, float), sparsity.shape)
        for path, values in zip(paths, leaves, strict=True)
        if np.size(values) == sparsity.size
    }
    if not found:
        raise ValueError("`history` holds no numbers to plot: give the experiment `evaluate`.")
    kept = 100 * (1 - sparsity.mean(0))
    figure = _figure(5 * len(found), 4.2)
    for axes, (name, values) in zip(np.ravel(figure.subplots(1, len(found))), found.items(), strict=True):
        _draw(axes, 0, name, kept, values.T)
        _kept_axis(axes, kept, name)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def plot_connectivity(lines: Mapping[str, Any], title: str = "") -> Figure:
    """Plots losses along the lines between pairs of networks.

    Args:
      lines: name -> a `Connectivity` whose values are one array (points,), or (seeds, points) under `vmap`.
      title: title of the figure.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there are no lines, or values are a tree of several arrays.
      ImportError: if matplotlib is missing.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> line = jp.linear_connectivity(lambda w, x: (w**2 - 1) ** 2 * x, jnp.array(-1.0), jnp.array(1.0), [1.0])
      >>> [drawn.get_label() for drawn in jp.plots.plot_connectivity({"two seeds": line}).axes[0].lines]
      ['two seeds']
    """
    if not lines:
        raise ValueError("`lines` is empty: there is nothing to plot.")
    figure = _figure(6, 4.2)
    axes = figure.subplots()
    for i, (name, line) in enumerate(lines.items()):
        leaves = jax.tree.leaves(line.values)
        if len(leaves) != 1:
            raise ValueError(
                f"`lines`[{name!r}] must have one array of values, got {len(leaves)}: pass one of them."
            )
        _draw(axes, i, name, np.atleast_2d(np.asarray(line.alpha))[0], np.atleast_2d(np.asarray(leaves[0])).T)
    axes.set_xlabel("position between the networks")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


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
    figure = _figure(7 if len(table.paths) <= 12 else 10, 4.2)
    axes = figure.subplots()
    for i, (path, losses) in enumerate(zip(table.paths, table.losses, strict=True)):
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i // len(_COLORS) % len(_MARKERS)]
        kept = [100 * (1 - s) for s in (0.0, *table.sparsities)]
        axes.plot(kept, [table.dense, *losses], color=color, marker=marker, markersize=4, label=path)
    axes.axhline(table.dense, color="#7f7f7f", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("weights of the layer kept (%)")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'jaxprune[demo]'.") from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(axes: Any, i: int, name: str, kept: np.ndarray, values: np.ndarray) -> None:
    """Draws line `i`: the mean of values (points, seeds), and its band."""
    # Beyond as many lines as there are colours the same colour has another marker and dashes.
    color, turn = _COLORS[i % len(_COLORS)], i // len(_COLORS)
    marker = _MARKERS[(i + turn) % len(_MARKERS)]
    style = ("-", "--", ":")[turn % 3]
    mean = np.mean(values, axis=1)
    axes.plot(
        kept, mean, color=color, marker=marker, markersize=4, linewidth=1.6, linestyle=style, label=name
    )
    if values.shape[1] > 1:
        spread = np.std(values, axis=1, ddof=1)
        axes.fill_between(kept, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)


def _kept_axis(axes: Any, kept: np.ndarray, label: str) -> None:
    """Makes the horizontal axis the percentage of kept weights, logarithmic and descending to the right."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = [
        t for t in (100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1) if kept.min() * 0.95 <= t <= kept.max() * 1.05
    ]
    axes.set_xscale("log")
    axes.set_xlim(kept.max() * 1.08, kept.min() / 1.08)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("weights kept (%)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
