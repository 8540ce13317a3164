"""An NNX module as a pure function of its statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import nnx


def as_function(
    train_fn: Callable[..., Any], module: nnx.Module
) -> tuple[Callable[..., Any], Any, Callable[[Any], None]]:
    """(statistics, *inputs) -> new statistics in training mode; the statistics; and what writes them into the module.

    The module's random streams and all other variables are left as they are.
    """
    graph, statistics, rest = nnx.split(module, nnx.BatchStat, ...)

    def pure(statistics: Any, *inputs: Any) -> Any:
        whole = nnx.merge(graph, statistics, rest, copy=True)
        whole.train()
        train_fn(whole, *inputs)
        return nnx.split(whole, nnx.BatchStat, ...)[1]

    return pure, statistics, lambda new: nnx.update(module, new)
