"""The sparsity of a schedule at a step: one share for all leaves, or one for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.allocation import check_fraction, check_limit, is_share
from jaxprune.masking import Units
from jaxprune.selection import counts as exact
from jaxprune.structures import Structure


def check_schedule(schedule: Any, structure: Structure, units: Units | None = None) -> None:
    """Raises if a schedule is not one, or its final sparsity is known to be wrong.

    A tree of final shares is checked later, with the units of the parameters.
    """
    if not callable(schedule):
        raise TypeError(f"`schedule` must map a step to a sparsity, got {schedule!r}: see jp.schedules.")
    final = getattr(schedule, "final", None)
    if final is None or (units is None and not is_share(final)):
        return
    names = [None] if units is None else units.cut.names
    shares = final_shares(schedule, units)
    for share, name in zip(shares if isinstance(shares, list) else [shares] * len(names), names, strict=True):
        check_fraction("schedule", share, name)
        check_limit("schedule", share, structure, f" at {name!r}" if name else "")


def final_shares(schedule: Any, units: Units | None) -> Any:
    """The schedule's `final` as a share, or as a list with one for each array of units; None if it has none."""
    final = getattr(schedule, "final", None)
    if final is None or is_share(final) or units is None:
        return final
    return units.each(final, "schedule")


def nothing_asked(schedule: Callable[[Any], Any], units: Units) -> jax.Array:
    """Zeros in the form that `shares_at` returns: a scalar, or a vector over the arrays of units."""
    shape = jax.eval_shape(lambda step: shares_at(schedule, step, units), jnp.zeros([], jnp.int32)).shape
    return jnp.zeros(shape, jnp.float32)


def shares_at(schedule: Callable[[Any], Any], step: jax.Array, units: Units) -> jax.Array:
    """float32: a scalar, or a vector over the arrays of units if the schedule returns a tree."""
    value = schedule(step)
    if is_share(value):
        return jnp.asarray(value, jnp.float32)
    return jnp.stack([jnp.asarray(share, jnp.float32) for share in units.each(value, "schedule")])


def scheduled_counts(schedule: Any, shares: jax.Array, units: Units) -> Any:
    """Number of units to prune, for shares from `shares_at`."""
    return counts_at(shares, final_shares(schedule, units), units.counts)


def counts_at(shares: jax.Array, final: Any, counts_of: Callable[[Any], Any]) -> Any:
    """The counts of shares, one or a list of them; exactly the counts of `final` once the shares reach it.

    float32 shares alone have an error of up to 2^-25, which is a whole unit in a leaf of more than 2^24 units.
    """
    counts = counts_of(list(shares) if shares.ndim else shares)
    if final is None:
        return counts
    wanted = counts_of(final)
    if isinstance(counts, list) != isinstance(wanted, list):
        return counts
    reached = shares == jnp.asarray(np.asarray(final, np.float32))

    def either(is_final: jax.Array, last: Any, count: Any) -> Any:
        return exact.where(is_final, exact.as_count(last), exact.as_count(count))

    if not isinstance(counts, list):
        return either(reached, wanted, counts)
    reached = jnp.broadcast_to(reached, (len(counts),))
    return [either(r, w, c) for r, w, c in zip(reached, wanted, counts, strict=True)]
