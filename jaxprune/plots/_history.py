"""The history of an experiment, or of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxprune.plots._drawing import draw, kept_axis, legend, new_figure
from jaxprune.round_history import equal_runs, numbers_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def history(history: Any, title: str = "") -> Figure:
    """Plots what experiments measured at the end of each training against the fraction of kept weights.

    One panel for each number of `evaluate`; without it, for each of the metrics of the last training step. Under
    `jax.vmap` runs of equal sparsities are the seeds of one experiment: points are means and bands one standard
    deviation to both sides (ddof 1; no band for one seed). Where `vmap` runs over sparsities, each of them is a
    point, the end of the last training. Several experiments are lines in the same panels.

    Args:
      history: of `jp.imp` or `Recipe.experiment`, or name -> history.
      title: title of the figure.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there is no number to plot, the histories have none in common, or a sparsity has another number
        of seeds than the others.
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> import jaxprune as jp
      >>> from jaxprune.round_history import Round
      >>> rows = Round(np.arange(3), np.array([0, 0.5, 0.75]), None, {}, {"loss": np.array([0.2, 0.1, 0.3])}, (), ())
      >>> [axes.get_ylabel() for axes in jp.plots.history(rows).axes]
      ['loss']
      >>> (axes,) = jp.plots.history({"imp": rows, "another": rows}).axes
      >>> [line.get_label() for line in axes.lines]
      ['imp', 'another']
    """
    named = history if isinstance(history, Mapping) else {"": history}
    if not named:
        raise ValueError("`history` is empty: there is nothing to plot.")
    found = {name: _measured(rows) for name, rows in named.items()}
    common = [
        path for path in next(iter(found.values())) if all(path in measured for measured in found.values())
    ]
    if not common:
        held = "; ".join(f"{name!r}: {sorted(measured)}" for name, measured in found.items() if name)
        raise ValueError(
            "`history` holds no numbers to plot: give the experiment `evaluate`."
            if not any(found.values())
            else f"`history` holds no numbers that all experiments have, got {held}. Give all the same `evaluate`."
        )
    points = {name: _points(name, rows) for name, rows in named.items()}
    figure = new_figure((5 if len(named) == 1 else 6.5) * len(common), 4.2)
    for axes, path in zip(np.ravel(figure.subplots(1, len(common))), common, strict=True):
        for i, (name, (kept, at)) in enumerate(points.items()):
            draw(axes, i, name or path, kept, found[name][path][at])
        kept_axis(axes, np.concatenate([kept for kept, _ in points.values()]), path)
    if len(named) > 1:
        legend(figure.axes[-1])
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _measured(rows: Any) -> dict[str, np.ndarray]:
    """Path -> numbers (runs, rounds)."""
    measured = numbers_of(rows.evaluation, rows.sparsity) or numbers_of(rows.metrics, rows.sparsity)
    return {path or "evaluation": values for path, values in measured.items()}


def _points(name: str, rows: Any) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The percent of kept weights (points,), and the index (points, seeds) of their runs and of their rounds."""
    groups = equal_runs(rows.sparsity)
    sizes = sorted({len(runs) for runs in groups})
    if len(sizes) > 1:
        raise ValueError(
            f"`history`{f'[{name!r}]' if name else ''} must have as many seeds at each sparsity, got {sizes}. Do all "
            "runs prune exactly?"
        )
    sparsity = np.atleast_1d(np.asarray(rows.sparsity, float))
    sparsity = sparsity.reshape(-1, sparsity.shape[-1])
    runs = np.stack(groups)
    rounds = np.arange(sparsity.shape[1]) if len(groups) == 1 else np.full(len(groups), sparsity.shape[1] - 1)
    runs, rounds = np.broadcast_arrays(runs, rounds[:, None])
    return 100 * (1 - sparsity[runs[:, 0], rounds[:, 0]]), (runs, rounds)
