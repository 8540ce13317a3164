"""Primitives that create arrays: the small array has the values of the full array at the kept units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import bind
from jaxprune.surgery.inference.axes import Axes, Reason, fresh, size_of
from jaxprune.surgery.inference.rules.rule import Kept, Rule, shape_of


def take_kept(array: Any, axes: Axes, kept: Kept) -> Any:
    """Slices an array to the kept units of its axes."""
    for dim, axis in enumerate(axes):
        if kept.size(axis) != size_of(axis):
            array = jnp.take(array, np.flatnonzero(kept.mask(axis)), axis=dim)
    return array


def _iota(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del ins, reason
    return [tuple(fresh(size) for size in shape_of(eqn))]


def _random_bits(eqn: JaxprEqn, ins: Sequence[Axes], reason: Reason) -> list[Axes]:
    del reason
    batch = ins[0]
    return [(*batch, *(fresh(size) for size in shape_of(eqn)[len(batch) :]))]


def _random_bits_evaluate(
    eqn: JaxprEqn, args: Sequence[Any], ins: Sequence[Axes], outs: Sequence[Axes], kept: Kept
) -> list[Any]:
    """Draws for all units and slices to the kept ones, so that a kept unit has the same random numbers as before."""
    batch = len(ins[0])
    (bits,) = bind(eqn, args)
    whole = tuple(() for _ in range(batch))  # the keys are sliced already
    return [take_kept(bits, (*whole, *outs[0][batch:]), kept)]


RULES = {
    "iota": Rule(_iota),
    "random_bits": Rule(_random_bits, evaluate=_random_bits_evaluate),
}
