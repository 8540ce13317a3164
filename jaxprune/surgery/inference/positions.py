"""Positions: integers that say where on an axis something is, such as the experts that a router chooses.

An argmax or a `top_k` over an axis gives positions on it. Where units of the axis are removed, the small function has
the positions of the kept units among themselves. This is the same function as long as positions are only compared
with positions, looked up, written at, moved and sorted: their order does not change. Any other use of them
freezes the axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.surgery.inference.axes import Axis, Reason, freeze, size_of, unify
from jaxprune.surgery.inference.frames import Frame


class Held(NamedTuple):
    """Every entry is a position on an axis, or a number `below` 0 or `beyond` its end that stands for none."""

    axis: Axis
    below: bool = False
    beyond: bool = False


class Shifted(NamedTuple):
    """Positions to which a number was added, which nothing may read."""

    axis: Axis


class Columns(NamedTuple):
    """Index vectors along the last dimension: what is known about each of their entries."""

    columns: tuple[Held | None, ...]


class Never(NamedTuple):
    """A bool that is false everywhere: whether a position is negative."""


Fact = Held | Shifted | Columns | Never


def axes_of(fact: Any) -> Iterator[Axis]:
    """The axes on which a fact holds positions."""
    if isinstance(fact, Held | Shifted):
        yield fact.axis
    elif isinstance(fact, Columns):
        yield from (column.axis for column in fact.columns if column is not None)


def freeze_positions(facts: Iterable[Any], reason: Reason, use: str) -> None:
    """Freezes the axes whose positions are used in another way than as positions."""
    for fact in facts:
        for axis in axes_of(fact):
            freeze(axis, reason._replace(text=f"positions on it {use}"))


def unified(facts: Sequence[Any], reason: Reason) -> Any:
    """A fact that holds for values of which these facts hold; axes of other facts are frozen."""
    if all(map(is_never, facts)):
        return Never() if facts else None
    first = next((fact for fact in facts if fact is not None), None)
    if first is None:
        return None
    if all(isinstance(f, Held) and size_of(f.axis) == size_of(first.axis) for f in facts):
        for fact in facts[1:]:
            unify(first.axis, fact.axis, reason)
        return Held(first.axis, any(f.below for f in facts), any(f.beyond for f in facts))
    freeze_positions(facts, reason, "are mixed with other numbers")
    return None


def number_of(frame: Frame, atom: Any) -> int | None:
    """The integer that a constant is everywhere."""
    value = frame.value(atom) if frame.is_constant(atom) else None
    if value is None or not jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.integer):
        return None
    flat = np.asarray(value).ravel()
    return int(flat[0]) if flat.size and (flat == flat[0]).all() else None


def iota_dimension(frame: Frame, atom: Any, size: int) -> int | None:
    """The dimension along which a constant counts 0, 1, ... size - 1."""
    value = frame.value(atom) if frame.is_constant(atom) else None
    if value is None or not jnp.issubdtype(getattr(value, "dtype", float), jnp.integer):
        return None
    array = np.asarray(value)
    for dim in (dim for dim, n in enumerate(array.shape) if n == size):
        if (array == np.arange(size).reshape([-1 if d == dim else 1 for d in range(array.ndim)])).all():
            return dim
    return None


def is_never(fact: Any) -> bool:
    return isinstance(fact, Never)
