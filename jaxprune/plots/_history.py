"""The history of an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.params import flatten_with_paths
from jaxprune.plots._drawing import draw, kept_axis, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        if np.size(values) == sparsity.size and _is_real(values)
    }
    if not found:
        raise ValueError("`history` holds no numbers to plot: give the experiment `evaluate`.")
    kept = 100 * (1 - sparsity.mean(0))
    figure = new_figure(5 * len(found), 4.2)
    for axes, (name, values) in zip(np.ravel(figure.subplots(1, len(found))), found.items(), strict=True):
        draw(axes, 0, name, kept, values.T)
        kept_axis(axes, kept, name)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _is_real(values: Any) -> bool:
    return any(
        jnp.issubdtype(jnp.result_type(values), kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)
    )
