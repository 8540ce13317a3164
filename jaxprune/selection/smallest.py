"""The k smallest scores of a set of leaves, exactly, by counting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.host import are_on_host, to_device, to_host
from jaxprune.selection import counts
from jaxprune.selection.blocks import all_or_none, as_dtype, keep_in_blocks, parts_of
from jaxprune.selection.counts import Count, known_count
from jaxprune.selection.devices import by_placement
from jaxprune.selection.in_place import keep_in_place
from jaxprune.selection.keys import key_dtype
from jaxprune.selection.on_host import keep_on_host

_LARGE = 1 << 20  # leaves with at least so many entries are left in place,
_FEW = 8  # unless there are more large ones than that
_COPY = 1 << 27  # and they are no more than so many entries together

_Arrays = list[jax.Array]
_Given = list[jax.Array | None]


def select(
    scores: Sequence[jax.Array], k: Any, *, pruned: Sequence[jax.Array | None] | None = None
) -> list[jax.Array]:
    r"""Keep all but the `k` smallest scores, over all leaves together, or in each leaf for a list of counts.

    Finds the smallest $t$ with $\#\{i : s_i \le t\} \ge k$ and prunes the scores below it and the first of its
    ties. Scores whose values are known and lie in the host's memory are looked at by NumPy. In a compiled program
    the search is over the bits of $t$ and sees the scores through counts only: about ten passes, no sort; for
    sharded arrays nothing is sent but the sums of these counts.

    Args:
      scores: float32, bfloat16 or float16 arrays of any shapes and signs, larger = keep. Leaves of several
        dtypes are compared as float32. NaN is pruned first; -0.0 equals 0.0.
      k: how many to prune: an int of any size, a traced integer scalar or a `Count`; or a list with one for each
        leaf, whose scores are then ranked separately. A traced `k` beyond the number of scores means all of them,
        a negative one none.
      pruned: for each leaf None or a bool array of its shape, True = pruned before. These entries are pruned
        before all others, and remain pruned even if they are more than `k`.

    Returns:
      For each leaf a bool array of its shape and sharding (NumPy's for a NumPy array), True = keep. Exactly `k`
      entries are False. Of equal scores the first are pruned, by leaf and then by row-major index.

    Raises:
      ValueError: if `k` is outside [0, number of scores], or `pruned` does not match the scores.
      TypeError: if scores or `k` have another type.

    >>> select([jnp.array([3.0, -1.0, 2.0]), jnp.array([[2.0, 5.0]])], 2)
    [Array([ True, False, False], dtype=bool), Array([[ True,  True]], dtype=bool)]

    References:
      Alabi, Blanchard, Gordon and Steinbach, "Fast k-Selection Algorithms for Graphics Processing Units",
      2012, for selection by counting in place of sorting.
    """
    leaves = [score if isinstance(score, np.ndarray) else jnp.asarray(score) for score in scores]
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype.itemsize > 4:
            raise TypeError(
                f"`scores` must be float32, bfloat16 or float16, got {leaf.dtype}. Cast them to float32."
            )
    before = [None] * len(leaves) if pruned is None else list(pruned)
    if len(before) != len(leaves):
        raise ValueError(
            f"`pruned` must have an entry for each of the {len(leaves)} leaves, got {len(before)}."
        )
    for leaf, done in zip(leaves, before, strict=True):
        if done is not None and (done.shape != leaf.shape or done.dtype != bool):
            raise ValueError(
                f"`pruned` must be bool of the scores' shape {leaf.shape}, got {done.dtype}{done.shape}."
            )
    sizes = [leaf.size for leaf in leaves]
    each = isinstance(k, list)
    if each and len(k) != len(leaves):
        raise ValueError(f"`k` must have an entry for each of the {len(leaves)} leaves, got {len(k)}.")
    for number, size in zip(k if each else [k], sizes if each else [sum(sizes)], strict=True):
        if isinstance(number, int | np.integer) and number > size:
            raise ValueError(f"`k` must be at most the number of scores, {size}, got {number}.")
    if not leaves:
        return []
    numbers = [known_count(number) for number in (k if each else [k])]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers) and are_on_host([*leaves, *before]):
        hosted = [None if done is None else to_host(done) for done in before]
        keeps = keep_on_host([to_host(leaf) for leaf in leaves], hosted, known if each else known[0])
        pairs = zip(keeps, leaves, strict=True)
        return [keep if isinstance(leaf, np.ndarray) else to_device(keep, leaf) for keep, leaf in pairs]
    wanted = counts.stack([counts.as_count(number) for number in (k if each else [k])])
    given = tuple(done is not None for done in before)
    arguments = [*wanted, *leaves, *(done for done in before if done is not None)]
    return by_placement(
        _Selection(given, each), [leaf.shape for leaf in leaves], *map(jnp.asarray, arguments)
    )


@dataclasses.dataclass(frozen=True)
class _Selection:
    """`select` as a function of arrays only.

    pruned: for each leaf, whether there is an array of entries pruned before; each: whether each leaf has a count.
    """

    pruned: tuple[bool, ...]
    each: bool

    def __call__(
        self, high: jax.Array, low: jax.Array, *arrays: jax.Array, partitioned: bool
    ) -> list[jax.Array]:
        scores, rest = list(arrays[: len(self.pruned)]), iter(arrays[len(self.pruned) :])
        pruned = [next(rest) if is_given else None for is_given in self.pruned]
        k = Count(high, low)
        copied = [] if partitioned else _to_copy([score.size for score in scores])
        if self.each:
            return _keep_each(scores, pruned, k, copied, partitioned)
        if copied and len(copied) == len(scores):
            return keep_in_blocks(scores, pruned, _short(k, scores), key_dtype(scores))
        return _keep_in_runs(scores, pruned, k, copied, partitioned)


def _to_copy(sizes: list[int]) -> list[int]:
    """Positions of the leaves that are searched side by side in a copy: all but the large ones.

    If there are many large ones they are copied too, unless that takes too much memory: a program that treats each
    of them separately compiles for seconds.
    """
    small = [i for i, size in enumerate(sizes) if size < _LARGE]
    if len(sizes) - len(small) > _FEW and sum(sizes) <= _COPY:
        return list(range(len(sizes)))
    return small if sum(sizes[i] for i in small) <= _COPY else []


def _keep_each(scores: _Arrays, pruned: _Given, k: Count, copied: list[int], partitioned: bool) -> _Arrays:
    """Masks from scores that are ranked within each leaf."""
    keeps: dict[int, jax.Array] = {}
    if copied:
        part, at = [scores[i] for i in copied], np.array(copied)
        wanted = _short(Count(k.high[at], k.low[at]), part, each=True)
        found = keep_in_blocks(part, [pruned[i] for i in copied], wanted, key_dtype(part))
        keeps = dict(zip(copied, found, strict=True))
    for i, score in enumerate(scores):
        if i not in keeps:
            (keeps[i],) = keep_in_place([score], [pruned[i]], _at(k, i), partitioned=partitioned)
    return [keeps[i] for i in range(len(scores))]


def _keep_in_runs(scores: _Arrays, pruned: _Given, k: Count, copied: list[int], partitioned: bool) -> _Arrays:
    """Masks for all leaves together. Copied neighbours are one leaf, so that ties are pruned in the order of leaves."""
    runs: list[list[int]] = []
    for i in range(len(scores)):
        if runs and i in copied and runs[-1][-1] in copied:
            runs[-1].append(i)
        else:
            runs.append([i])
    dtype = key_dtype(scores)
    leaves, before = [], []
    for run in runs:
        if len(run) == 1:
            leaves.append(scores[run[0]])
            before.append(pruned[run[0]])
            continue
        leaves.append(jnp.concatenate([as_dtype(scores[i], dtype).reshape(-1) for i in run]))
        known = all_or_none([pruned[i] for i in run], [scores[i] for i in run])
        before.append(None if known is None else jnp.concatenate([mask.reshape(-1) for mask in known]))
    leaves, before = lax.optimization_barrier((leaves, before))
    keeps: list[Any] = [None] * len(scores)
    for run, keep in zip(
        runs, keep_in_place(leaves, before, _at(k, 0), partitioned=partitioned), strict=True
    ):
        sizes = [scores[i].size for i in run]
        parts = [keep] if len(run) == 1 else parts_of(keep, list(np.cumsum(sizes) - sizes), sizes)
        for i, part in zip(run, parts, strict=True):
            keeps[i] = part.reshape(scores[i].shape)
    return keeps


def _at(k: Count, i: int) -> Count:
    return Count(k.high[i], k.low[i])


def _short(k: Count, scores: _Arrays, each: bool = False) -> jax.Array:
    """Counts as uint32; counts beyond 2^32 as the number of all scores, which is smaller."""
    sizes = [score.size for score in scores]
    return jnp.where(k.high > 0, np.array(sizes if each else [sum(sizes)], np.uint32), k.low)
