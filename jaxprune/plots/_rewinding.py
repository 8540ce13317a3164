"""Late rewinding: what tickets reach against the step to which they were rewound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxprune.plots._drawing import draw, legend, new_figure, numbers, panels, step_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_rewinding(
    steps: Sequence[int],
    history: Any,
    rounds: Sequence[int] | None = None,
    title: str = "",
    metric: str | None = None,
) -> Figure:
    """Plots what tickets reach against the step to which they were rewound, one line for each sparsity.

    One panel for each number of `evaluate`, with a dashed line for the dense network. Points are means over seeds.
    Bands are one standard deviation to both sides (ddof 1; no band for one seed).

    Args:
      steps: those of `jp.late_rewinding`.
      history: its result, with a leading axis of seeds under `vmap`.
      rounds: the rounds whose tickets are plotted, None for all after the dense one.
      title: title of the figure.
      metric: the only number to plot, such as "accuracy"; None plots all.

    Returns:
      A `matplotlib.figure.Figure`; write it with `figure.savefig(path)`.

    Raises:
      ValueError: if there is nothing to plot, steps or rounds are not those of the history, or there is no such
        metric.
      ImportError: if matplotlib is missing.

    Example:
      >>> import numpy as np
      >>> import jaxprune as jp
      >>> from jaxprune.round_history import Round
      >>> evaluation = {"accuracy": np.array([[0.97, 0.9], [0.97, 0.95]])}
      >>> history = Round(None, np.array([[0, 0.8], [0, 0.8]]), None, {}, evaluation, (), ())
      >>> [line.get_label() for line in jp.plots.plot_rewinding((0, 100), history).axes[0].lines]
      ['20 % kept', 'dense']
    """
    if not jax.tree.leaves(history.evaluation):
        raise ValueError("`history` holds no numbers to plot: give the experiment `evaluate`.")
    sparsity = np.asarray(history.sparsity, float)
    sparsity = sparsity.reshape(-1, *sparsity.shape[-2:])
    number = sparsity.shape[-1]
    if len(steps) != sparsity.shape[1]:
        raise ValueError(
            f"`steps` must be those of the history, which has {sparsity.shape[1]}, got {len(steps)}."
        )
    rounds = range(1, number) if rounds is None else rounds
    if not rounds or any(not 0 < r < number for r in rounds):
        raise ValueError(f"`rounds` must be among 1 to {number - 1}, got {tuple(rounds)}.")
    found = numbers({"": history.evaluation}, metric, "history")
    figure = new_figure(7.6 * len(found), 4.2)
    for label, axes in panels(figure, list(found)).items():
        values = found[label][""].reshape(sparsity.shape)
        for i, r in enumerate(rounds):
            kept = 100 * (1 - sparsity[..., r].mean())
            draw(axes, i, f"{kept:.3g} % kept", np.asarray(steps), values[..., r].T)
        axes.axhline(values[..., 0].mean(), color="black", linestyle="--", linewidth=1, label="dense")
        step_axis(
            axes, steps, "step to which the ticket is rewound", "evaluation" if label == "value" else label
        )
        legend(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
