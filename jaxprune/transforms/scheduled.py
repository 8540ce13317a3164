"""What a schedule asks for at a step: one share for all leaves, or a share for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.allocation import Scope, check_fraction, counts_to_prune, is_share
from jaxprune.params import PyTree, aligned, flatten_with_paths
from jaxprune.selection import counts as exact
from jaxprune.structures import NM, Structure


def check_schedule(
    schedule: Any, structure: Structure, params: PyTree = None, chosen: list[int] | None = None
):
    """Raises for a schedule that is none, or whose final sparsity is known to be wrong.

    A tree of final shares is checked with the parameters, on the chosen leaves.
    """
    if not callable(schedule):
        raise TypeError(f"`schedule` must map a step to a sparsity, got {schedule!r}: see jp.schedules.")
    final = getattr(schedule, "final", None)
    if final is None or (chosen is None and not is_share(final)):
        return
    paths = [None] if chosen is None else [flatten_with_paths(params)[0][i] for i in chosen]
    shares = final_shares(schedule, params, chosen)
    for share, path in zip(shares if isinstance(shares, list) else [shares] * len(paths), paths, strict=True):
        check_fraction("schedule", share, path)
        if isinstance(structure, NM) and share > structure.sparsity + 1e-6:
            at = f" at {path!r}" if path else ""
            raise ValueError(
                f"`schedule` must not pass {structure.sparsity:g}, the sparsity of {structure}, got {share:g}{at}."
            )


def final_shares(schedule: Any, params: PyTree, chosen: list[int] | None) -> Any:
    """The schedule's `final` as a share, or as a list with one for each chosen leaf; None if it tells none."""
    final = getattr(schedule, "final", None)
    if final is None or is_share(final) or chosen is None:
        return final
    shares = aligned(params, final, "schedule")
    return [shares[i] for i in chosen]


def nothing_asked(schedule: Callable[[Any], Any], params: PyTree, chosen: list[int]) -> jax.Array:
    """Zeros as `shares_at` gives shares: a scalar, or a vector over the chosen leaves."""
    shape = jax.eval_shape(
        lambda step: shares_at(schedule, step, params, chosen), jnp.zeros([], jnp.int32)
    ).shape
    return jnp.zeros(shape, jnp.float32)


def shares_at(
    schedule: Callable[[Any], Any], step: jax.Array, params: PyTree, chosen: list[int]
) -> jax.Array:
    """float32: a scalar, or a vector over the chosen leaves where the schedule gives a tree."""
    value = schedule(step)
    if is_share(value):
        return jnp.asarray(value, jnp.float32)
    shares = aligned(params, value, "schedule")
    return jnp.stack([jnp.asarray(shares[i], jnp.float32) for i in chosen])


def counts_at(shares: jax.Array, final: Any, units: list[int], scope: Scope) -> Any:
    """Units to prune for what `shares_at` gave, and exactly those of `final` where that is reached.

    float32 shares alone are up to 2^-25 off, which is a unit in a leaf of more than 2^24.
    """
    counts = counts_to_prune(list(shares) if shares.ndim else shares, units, scope)
    if final is None:
        return counts
    wanted = counts_to_prune(final, units, scope)
    if isinstance(counts, list) != isinstance(wanted, list):
        return counts
    reached = shares == jnp.asarray(np.asarray(final, np.float32))

    def either(is_final: jax.Array, last: Any, count: Any) -> Any:
        return exact.where(is_final, exact.as_count(last), exact.as_count(count))

    if not isinstance(counts, list):
        return either(reached, wanted, counts)
    reached = jnp.broadcast_to(reached, (len(counts),))
    return [either(r, w, c) for r, w, c in zip(reached, wanted, counts, strict=True)]
