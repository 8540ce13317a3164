"""What the command line needs to know of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Model:
    """A model of one's own, for the commands `jaxprune inspect`, `shrink` and `export`.

    A file that has a function `build()` which returns it is all that they need: `jaxprune inspect my_file.py:build`.

    Attributes:
      fn: the function `fn(params, *inputs)`, in evaluation mode, of an array or a tree of arrays.
      params: its parameters, any pytree of arrays: Linen's variables, an NNX `State`, an Equinox module, a dict.
      inputs: example inputs, a tuple of arrays or trees of arrays.
      batches: calibration batches for scores, compensation and distillation: each a tuple of the inputs, and after
        them whatever else `loss` needs, such as labels. All have one shape. None if there are none.
      loss: function `loss(params, batch)` that returns a scalar, for scores that need gradients.
      evaluate: function `evaluate(fn, params)` that returns a number, or a dict of numbers by name. It is given the
        dense and the small model, each compiled by `jax.jit`.

    Raises:
      TypeError: if a function can't be called, or inputs or batches are no sequence of them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> def build():
      ...     params = {"up": jnp.ones((3, 8)), "down": jnp.ones((8, 2))}
      ...     return jp.Model(lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"], params, (jnp.ones((4, 3)),))
      >>> build().batches is None
      True
    """

    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    batches: Iterable[tuple[Any, ...]] | None = None
    loss: Callable[[Any, Any], Any] | None = None
    evaluate: Callable[[Callable[..., Any], Any], float | Mapping[str, float]] | None = None

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(f"`fn` must be a function fn(params, *inputs), got {_kind(self.fn)}.")
        if not isinstance(self.inputs, tuple):
            raise TypeError(
                f"`inputs` must be a tuple of example inputs, got {_kind(self.inputs)}. For one input pass (input,)."
            )
        for name in ("loss", "evaluate"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"`{name}` must be a function or None, got {_kind(getattr(self, name))}.")
        if self.batches is not None and (
            isinstance(self.batches, str | Mapping) or not isinstance(self.batches, Iterable)
        ):
            raise TypeError(f"`batches` must be an iterable of tuples, got {_kind(self.batches)}.")


def _kind(value: Any) -> str:
    return "None" if value is None else f"one of type {type(value).__name__}"
