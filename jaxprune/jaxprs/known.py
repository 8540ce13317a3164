"""Facts about a value in a jaxpr: its number, or that it is zero, or that it equals an input."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_LARGEST_CONSTANT = 1 << 20  # admits a table of learning rates, but not a data set


class Known(NamedTuple):
    """A number of the value's shape, or a scalar for one number everywhere."""

    value: Any


class Hint(NamedTuple):
    """An unknown value with facts: `zero` everywhere; the `same` as input i, if the bool of (i, bool) is true."""

    zero: Any = False
    same: tuple[int, Any] | None = None


Value = Known | Hint


def constant(value: Any) -> Value:
    """A captured constant: known unless it is traced or large."""
    if isinstance(value, Tracer) or not is_plain(value) or np.size(value) > _LARGEST_CONSTANT:
        return Hint()
    return Known(value)


def both(a: Any, b: Any) -> Any:
    """`a and b`; a Python bool if it is known."""
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
    """Whether all flags hold."""
    return functools.reduce(both, flags, True)


def flag(a: Any) -> Any:
    """A Python bool, or the unchanged traced bool."""
    return a if isinstance(a, Tracer) else bool(a)


def is_plain(x: Any) -> bool:
    """Whether a value has numbers or bools, and not PRNG keys, tokens or references."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return isinstance(x, bool | int | float | complex)
    return not jnp.issubdtype(dtype, jax.dtypes.extended) and hasattr(x, "shape")


def is_zero(x: Value) -> Any:
    """Whether a value is certainly zero everywhere; a bool, which may be traced."""
    if isinstance(x, Hint):
        return x.zero
    return all_equal(x.value, 0)


def all_equal(value: Any, number: int) -> Any:
    """Whether all entries are this number; compared on the host if they are known, so that nothing is compiled."""
    xp = jnp if isinstance(value, Tracer) else np
    return flag(xp.all(xp.asarray(value) == number))


def is_one(x: Value) -> Any:
    """Whether a value is certainly 1 everywhere."""
    return all_equal(x.value, 1) if isinstance(x, Known) else False


def same_of(x: Value) -> tuple[int, Any] | None:
    """The number of the input that a value equals, and whether this holds; None if no such input is known."""
    return x.same if isinstance(x, Hint) else None
