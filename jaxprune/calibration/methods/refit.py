"""Refit: the kept weights of a whole residual branch are trained toward the output of the dense branch."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import optax

from jaxprune.jaxprs.windows import WindowSize


@dataclasses.dataclass(frozen=True)
class Refit:
    r"""Trains the kept weights of each window of the model toward the outputs of the dense window.

    A window is a residual branch $f$ (attention, an MLP) with the stream that it is added to. With the masks fixed,
    $\sum \|x + f(\theta, x) - t\|^2$ is minimized over the kept weights, biases and norms that only this window
    uses, on the inputs $x$ from the pruned and refitted windows before it. The target is
    $t = (1 - \lambda)(x + f(\theta_0, x)) + \lambda (x_0 + f(\theta_0, x_0))$, where $\theta_0$ and $x_0$ belong to the
    dense model and $\lambda$ is `dense_targets`. A window keeps its weights if training does not lower the error
    over all batches.

    Args:
      steps: number of optimizer steps in each window. A step takes one of the calibration batches, in turn.
      learning_rate: of Adam with a cosine decay to 0, relative to the root mean square of each parameter.
      optimizer: an optax optimizer instead of Adam; `learning_rate` then has no effect.
      window: "branch" for residual branches, or the number of consecutive branches in a window. In a model without
        residual branches, a window holds the weights of two consecutive inputs, or of as many as given here.
      dense_targets: how far, from 0 to 1, the target moves to the output in the dense model. None for the same as
        in `reconstruct`, and 0 in `refit`.
      weights: whether weights are trained; False for biases and norms only.

    Raises:
      ValueError: if `steps` or an int `window` is below 1, `learning_rate` is not positive, or `dense_targets` is
        outside [0, 1].
      TypeError: if `optimizer` is none.

    References:
      Guo et al., EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs, 2024, arXiv:2402.12419.
      Zimmer et al., PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs, 2023, arXiv:2312.15230 (biases
      and norms only).
    """

    steps: int = 64
    learning_rate: float = 0.01
    optimizer: Any = None
    window: WindowSize = "branch"
    dense_targets: float | None = None
    weights: bool = True

    def __post_init__(self):
        if not _is_count(self.steps) or not self.learning_rate > 0:
            raise ValueError(
                f"Refit needs `steps` >= 1 and `learning_rate` > 0, got steps={self.steps!r}, "
                f"learning_rate={self.learning_rate!r}."
            )
        if self.window != "branch" and not _is_count(self.window):
            raise ValueError(f"Refit `window` must be 'branch' or an int of at least 1, got {self.window!r}.")
        if self.dense_targets is not None and not 0 <= self.dense_targets <= 1:
            raise ValueError(f"Refit `dense_targets` must be in [0, 1], got {self.dense_targets!r}.")
        if self.optimizer is not None and not callable(getattr(self.optimizer, "update", None)):
            raise TypeError(f"Refit `optimizer` must be an optax optimizer, got {self.optimizer!r}.")

    def training(self) -> tuple[Any, bool]:
        """The optimizer, and whether its updates are relative to the size of each parameter."""
        if self.optimizer is not None:
            return self.optimizer, False
        return _adam(self.steps, self.learning_rate), True


def _is_count(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 1


@functools.cache
def _adam(steps: int, learning_rate: float) -> Any:
    """The same object for the same settings, so that a training step is compiled once."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
