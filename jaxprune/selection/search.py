"""A search over integers that uses the data only through counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.meshes import steady
from jaxprune.selection import counts
from jaxprune.selection.counts import Count

# Probes a pass. Seven settle three bits, and on a CPU cost a quarter more than one does: the pass is bound by
# reading the scores, as it is on an accelerator.
_PROBES = 7
_LARGEST_SUM = 1 << 32  # uint32 partial sums must stay below
_EVEN = np.arange(1, _PROBES + 1, dtype=np.float32) / (_PROBES + 1)
_SPREAD = np.array([-16, -4, -1, 0, 1, 4, 16], np.float32)


def search(below: Callable[[jax.Array], Count], high: int, k: Count, at_high: Count):
    """Find the t in [0, high] with below(t) = k, or else the one with below(t) < k < below(t + 1).

    Each pass tests seven thresholds. They divide the bracket evenly until its entries become fewer. Then they lie
    close to the point that interpolation predicts; after a wrong prediction they divide the bracket evenly again.

    Args:
      below: seven ascending uint32 thresholds -> how many entries of each part are smaller, a `Count` of
        shape (7, parts). It must rise from 0 at threshold 0.
      high: a threshold above all entries, at most 2^32 - 1.
      k: the count to reach, at most the sum of `at_high`.
      at_high: the value of `below` at `high`, shape (parts,).

    Returns:
      t, the count that is missing at t (k minus the sum of `below(t)`), and for each part the number of its
      entries that equal t, or an upper bound of that number if nothing is missing.
    """

    def reached(count: Count) -> jax.Array:
        return counts.equal(counts.total(count), k)

    def cond(state) -> jax.Array:
        low, high, at_low, at_high, _ = state
        return (high - low > 1) & ~reached(at_low) & ~reached(at_high)

    def body(state):
        low, high, at_low, at_high, guided = state
        width = high - low
        # At least 1: under vmap the loop also runs for searches that have ended.
        inside = jnp.maximum(counts.as_float(counts.total(counts.subtract(at_high, at_low))), 1)
        wanted = jnp.clip(counts.as_float(counts.subtract(k, counts.total(at_low))) / inside, 0, 1)
        places = jnp.where(guided, _around(wanted, inside), _EVEN)
        steps = (width.astype(jnp.float32) * places).astype(jnp.uint32)
        probes = low + jnp.clip(steps, 1, width - 1)
        found = below(probes)
        # The bracket's new ends are the last probe that is not over k and the one after it.
        bounds = jnp.concatenate([low[None], probes, high[None]])
        at_bounds = jax.tree.map(lambda *parts: jnp.concatenate(parts), _row(at_low), found, _row(at_high))
        last = jnp.sum(counts.less_equal(jax.vmap(counts.total)(found), k).astype(jnp.int32))
        new_low, new_high = bounds[last], bounds[last + 1]
        at_low, at_high = (jax.tree.map(lambda part, i=i: part[i], at_bounds) for i in (last, last + 1))
        fewer = counts.as_float(counts.total(counts.subtract(at_high, at_low))) < inside / 2
        kept = new_high - new_low <= width // (_PROBES + 1)
        return new_low, new_high, at_low, at_high, jnp.where(guided, kept, fewer)

    zero = jnp.zeros((), jnp.uint32)
    start = (zero, jnp.asarray(high, jnp.uint32), counts.zeros_like(at_high), at_high, jnp.zeros((), bool))
    low, high_end, at_low, at_high, _ = lax.while_loop(cond, body, steady(body, start))
    everything = reached(at_high) & ~reached(at_low)
    missing = counts.subtract(k, counts.total(at_low))
    missing = counts.where(everything, counts.zeros_like(missing), missing)
    return jnp.where(everything, high_end, low), missing, counts.subtract(at_high, at_low)


def _around(wanted: jax.Array, inside: jax.Array) -> jax.Array:
    """Seven thresholds around the wanted quantile: within its random error, then 4 and 16 times as far away."""
    deviation = 2 * jnp.sqrt(wanted * (1 - wanted) / inside) + 0.5 / inside
    return jnp.clip(wanted + _SPREAD * deviation, 0, 1)


def _row(count: Count) -> Count:
    return Count(count.high[None], count.low[None])


def count(predicates: Sequence[jax.Array], *, partitioned: bool, largest_sum: int = _LARGEST_SUM) -> Count:
    """The number of True entries of each bool array, a `Count` of shape (len(predicates),).

    The scores are read once for all arrays, and sharded arrays are not moved.

    Args:
      predicates: bool arrays of one shape.
      partitioned: whether the arrays may be spread over devices. From separate sums XLA's partitioner makes one
        all-reduce, but from a reduction with several operands many small gathers. Without partitioning that
        reduction is the better form: XLA's CPU code for it is vectorized, and its code for integer sums is not.
      largest_sum: bound of all partial sums.
    """
    shape = predicates[0].shape
    inner, product = [], 1
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if product * shape[axis] < largest_sum:
            inner.append(axis)
            product *= shape[axis]
    if partitioned:
        sums = [jnp.sum(predicate, axis=inner, dtype=jnp.uint32) for predicate in predicates]
    else:
        ones = [predicate.astype(jnp.uint32) for predicate in predicates]
        sums = sums_of(ones, inner)
    if len(inner) == len(shape):
        return counts.from_uint32(jnp.stack(sums))
    return counts.stack([counts.total(counts.from_uint32(part)) for part in sums])


def sums_of(parts: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    """The sums of uint32 arrays of one shape, in one pass."""
    zero = jnp.zeros((), jnp.uint32)
    return list(
        lax.reduce(
            list(parts), [zero] * len(parts), lambda a, b: [x + y for x, y in zip(a, b, strict=True)], axes
        )
    )
