"""From scores and counts to masks: by NumPy if all arrays are known and in host memory, else as one program."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.host import are_on_host, to_device, to_host
from jaxprune.selection import Count, is_fine
from jaxprune.structures.structure import Cut


def keep_masks(
    cut: Cut,
    scores: Sequence[Any],
    counts: Any,
    priors: Sequence[Any] | None = None,
    least: Sequence[int] = (),
    check: bool = False,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Masks of the chosen leaves that prune given counts of units, and for each leaf whether its scores are fine.

    One program serves all leaves. Known counts are arguments of the program, so that another sparsity does not
    compile again.

    Args:
      cut: the units.
      scores: the scores of each chosen leaf. They are fine if none is NaN or -inf.
      counts: number of units to prune: one number for all units, or a list with one for each array of units.
      priors: the masks of each leaf whose pruned units remain pruned; None if there are none.
      least: `least[a]` is the minimum number of units that array a keeps.
      check: whether to check that the scores are fine; if not, the second list is empty.
    """
    sizes = map(math.prod, cut.shapes)
    unprotected = [n - m for n, m in zip(sizes, least, strict=True)] if any(least) else None
    counts = cut.counts_to_compare(counts)
    held = [None] * len(scores) if priors is None else list(priors)
    if are_on_host([*scores, *held]) and not any(isinstance(n, Tracer) for n in jax.tree.leaves(counts)):
        priors = [None if prior is None else to_host(prior) for prior in held]
        masks, fine = _keep_masks(
            cut, [to_host(score) for score in scores], counts, priors, unprotected, check
        )
        return list(map(to_device, masks, scores)), fine
    counts, unprotected = (
        [_argument(n) for n in numbers] if isinstance(numbers, list) else _argument(numbers)
        for numbers in (counts, unprotected)
    )
    return _keep_masks_compiled(
        cut, [jnp.asarray(score) for score in scores], counts, held, unprotected, check
    )


def _argument(count: Any) -> Any:
    return Count.of(count) if isinstance(count, int) else count


def _keep_masks(
    cut: Cut, leaves: list[Any], counts: Any, priors: list[Any], unprotected: list[Any] | None, check: bool
) -> tuple[list[Any], list[Any]]:
    units = [comparable(u) for u in cut.scores(leaves)]
    kept = cut.select(units, counts, cut.pruned(priors), unprotected)
    # In a unit that was pruned in part, that part remains pruned.
    masks = [
        mask if prior is None else mask & prior for mask, prior in zip(cut.masks(kept), priors, strict=True)
    ]
    return masks, [_is_fine(leaf) for leaf in leaves] if check else []


_keep_masks_compiled = jax.jit(_keep_masks, static_argnames=("cut", "check"))


def comparable(scores: Any) -> Any:
    """Scores in a dtype that `select` takes: float64 is compared as float32."""
    with np.errstate(over="ignore"):
        return scores.astype(jnp.float32) if scores.dtype == jnp.float64 else scores


def _is_fine(scores: Any) -> Any:
    """Whether no score is NaN or -inf. inf means keep."""
    if isinstance(scores, np.ndarray):
        return is_fine(scores)
    # Some 8-bit floats have no inf.
    wide = scores.astype(jnp.float32) if scores.dtype.itemsize < 4 else scores
    return jnp.all(wide > -jnp.inf)  # false for NaN


@functools.partial(jax.jit, static_argnames="cut")
def pruned_units(cut: Cut, masks: list[Any]) -> list[jax.Array]:
    """For each array of units, which units have no weight left."""
    found = cut.pruned(masks)
    return [
        jnp.zeros(shape, bool) if pruned is None else pruned
        for pruned, shape in zip(found, cut.shapes, strict=True)
    ]


@functools.partial(jax.jit, static_argnames="cut")
def spread(cut: Cut, kept: list[jax.Array]) -> list[jax.Array]:
    """Mask leaves from one decision per unit."""
    return cut.masks(kept)


def nothing_pruned(cut: Cut, leaves: Sequence[Any]) -> list[jax.Array]:
    """Mask leaves that keep every unit, each on the device of its leaf."""
    if not are_on_host(leaves):
        return _nothing_pruned(cut)
    return list(map(to_device, cut.masks([np.ones(shape, bool) for shape in cut.shapes]), leaves))


@functools.partial(jax.jit, static_argnames="cut")
def _nothing_pruned(cut: Cut) -> list[jax.Array]:
    return cut.masks([jnp.ones(shape, bool) for shape in cut.shapes])
