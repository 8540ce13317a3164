"""What a primitive must define: one object has its inference, resizing and reduction identities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import shape_of as aval_shape
from jaxprune.surgery.inference.axes import Axes, Axis, Reason


class Kept(Protocol):
    """Which units of every axis are kept."""

    def size(self, axis: Axis) -> int: ...

    def mask(self, axis: Axis) -> np.ndarray: ...


class Reduction(NamedTuple):
    """An operand reduced over some of its dimensions, and the value that a removed unit has there."""

    operand: int
    dimensions: tuple[int, ...]
    identity: Callable[[Any], Any]  # dtype -> scalar


Values = Callable[[int], Any]  # place of an operand -> its value if it is a known constant, else None
Infer = Callable[[JaxprEqn, Sequence[Axes], Reason], list[Axes]]
Resize = Callable[[JaxprEqn, Sequence[Axes], Sequence[Axes], Kept], dict[str, Any]]
Evaluate = Callable[[JaxprEqn, Sequence[Any], Sequence[Axes], Sequence[Axes], Kept], list[Any]]
Reduces = Callable[[JaxprEqn, Sequence[Axes]], list[Reduction]]


@dataclass(frozen=True)
class Rule:
    """A primitive's rule.

    `infer` returns the axes of the outputs and unifies the axes of the inputs, so that the equation on sliced
    arrays equals the slice of the equation. `infer_known` does the same with the values of constant operands, and
    returns None if these values give no more information. `resize` returns the parameters of the equation that
    contain sizes, for the smaller arrays. If parameters are not enough, `evaluate` computes the smaller outputs.
    `reduces` lists the reductions across units.
    """

    infer: Infer
    resize: Resize | None = None
    evaluate: Evaluate | None = None
    reduces: Reduces | None = None
    infer_known: Callable[[JaxprEqn, Sequence[Axes], Values, Reason], list[Axes] | None] | None = None


def shape_of(eqn: JaxprEqn, output: int = 0) -> tuple[int, ...]:
    return aval_shape(eqn.outvars[output])


def kept_shape(axes: Axes, kept: Kept) -> tuple[int, ...]:
    return tuple(kept.size(axis) for axis in axes)


def zero(dtype: Any) -> Any:
    return np.zeros((), dtype)


def one(dtype: Any) -> Any:
    return np.ones((), dtype)


def lowest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.bool_):
        return np.zeros((), dtype)
    return np.array(-np.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).min, dtype)


def highest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.bool_):
        return np.ones((), dtype)
    return np.array(np.inf if jnp.issubdtype(dtype, jnp.inexact) else jnp.iinfo(dtype).max, dtype)
