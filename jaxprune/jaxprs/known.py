"""What may be known of a value in a jaxpr: its number, or that it is zero, or that it equals an input."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_LARGEST_CONSTANT = 1 << 20  # a table of learning rates, but no data set


class Known(NamedTuple):
    """A number of the value's shape, or a scalar for one number everywhere."""

    value: Any


class Hint(NamedTuple):
    """Unknown but for this: `zero` everywhere; `same` as input i, where the bool of (i, bool) holds."""

    zero: Any = False
    same: tuple[int, Any] | None = None


Value = Known | Hint


def constant(value: Any) -> Value:
    """A captured constant: known unless it is traced or large."""
    if isinstance(value, Tracer) or not is_plain(value) or np.size(value) > _LARGEST_CONSTANT:
        return Hint()
    return Known(value)


def both(a: Any, b: Any) -> Any:
    """`a and b`; known where it can be."""
    a, b = flag(a), flag(b)
    if isinstance(a, bool):
        return b if a else False
    return (a if b else False) if isinstance(b, bool) else a & b


def negated(a: Any) -> Any:
    """`not a`."""
    a = flag(a)
    return not a if isinstance(a, bool) else ~a


def either(a: Any, b: Any) -> Any:
    """`a or b`."""
    return negated(both(negated(a), negated(b)))


def all_of(flags: Sequence[Any]) -> Any:
    """Whether all of them hold."""
    return functools.reduce(both, flags, True)


def flag(a: Any) -> Any:
    """A bool of Python's, or a traced one as it is."""
    return a if isinstance(a, Tracer) else bool(a)


def is_plain(x: Any) -> bool:
    """Numbers or bools: no PRNG keys, tokens or references."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return isinstance(x, bool | int | float | complex)
    return not jnp.issubdtype(dtype, jax.dtypes.extended) and hasattr(x, "shape")


def is_zero(x: Value) -> Any:
    """Whether a value is surely zero everywhere; a bool, which may be traced."""
    if isinstance(x, Hint):
        return x.zero
    return all_equal(x.value, 0)


def all_equal(value: Any, number: int) -> Any:
    """Whether all entries are this number; on the host where they are known, so that nothing is compiled."""
    xp = jnp if isinstance(value, Tracer) else np
    return flag(xp.all(xp.asarray(value) == number))


def is_one(x: Value) -> Any:
    """Whether a value is surely 1 everywhere."""
    return all_equal(x.value, 1) if isinstance(x, Known) else False


def same_of(x: Value) -> tuple[int, Any] | None:
    """The input that a value equals, and where that is so; None if none is known."""
    return x.same if isinstance(x, Hint) else None
