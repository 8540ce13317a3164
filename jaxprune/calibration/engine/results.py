"""What is told of each weight that was pruned, and of each window that was refitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class LayerResult(NamedTuple):
    """The result of pruning one weight: `error` is ||X W - target||^2 / ||target||^2 on the layer's own inputs."""

    path: str
    error: float
    sparsity: float


class WindowResult(NamedTuple):
    """The result of refitting one window.

    path: the paths of its pruned weights; error, before: the squared error of its output after and before, relative
    to that of its branches being left out (to the squared output if nothing bypasses them); sparsity: fraction of
    the entries of these weights that are pruned.
    """

    path: str
    error: float
    sparsity: float
    before: float


OnLayer = Callable[[Any], None]
