"""Scheduling: sparsity as a function of the step.

Every schedule maps a step (or a round) to a sparsity. For a Python int it returns a Python float in double
precision; for an array, also a traced one, a float32. The value changes only at `begin`, `begin + every`, ..., so
that `gradual` recomputes its masks only at those steps.

`final` is the sparsity at the end of a schedule that rises, `sparsity` that of a schedule with one value, and
`rate` the fraction of the remaining weights that each round prunes, as in `jp.imp`.

The final sparsity may be a tree of sparsities like the parameters, an allocation such as that of
`jp.allocate.erk`. The schedule then returns a tree at every step, and each leaf ends at its own sparsity.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.allocation import check_fraction, is_share, pruned_after
from jaxprune.params import PyTree, aligned, flatten_with_paths
from jaxprune.selection import as_written
from jaxprune.whole_numbers import check_whole

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cubic",
    "exponential",
    "geometric",
    "iterative",
    "linear",
    "one_shot",
]


def __dir__() -> list[str]:
    return sorted(__all__)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A schedule: call it with a step. The functions of this module make it; its fields are for reading.

    Args:
      name: the function that made it.
      final: the final sparsity, a float or a tree of floats.
      begin: first step with an update.
      end: step from which the sparsity is `final`.
      shape: progress in [0, 1], module (numpy or jax.numpy) -> sparsity, in the tree of `final`.
      every: number of steps between two updates.
    """

    name: str
    final: PyTree = dataclasses.field(hash=False)  # a tree has no hash, and `jax.jit(schedule)` needs one
    begin: int
    end: int
    shape: Callable[[Any, Any], Any] = dataclasses.field(repr=False)
    every: int = 1

    def __call__(self, step: Any) -> Any:
        exact = isinstance(step, int | np.integer)
        xp: Any = np if exact else jnp
        since = step - self.begin
        since = since - since % self.every  # the value holds between updates
        fraction = xp.clip(since / max(self.end - self.begin, 1), 0.0, 1.0)

        def at_step(final: float, value: Any) -> Any:
            value = xp.where(step >= self.end, final, value)
            value = xp.where(step < self.begin, 0.0, value)
            return float(value) if exact else value.astype(jnp.float32)

        return jax.tree.map(at_step, self.final, self.shape(fraction, xp))


def constant(sparsity: PyTree) -> Schedule:
    """The same sparsity from step 0 on.

    Example:
      >>> import jaxprune as jp
      >>> jp.schedules.constant(0.9)(0)
      0.9
    """
    return one_shot(sparsity, step=0, name="constant")


def one_shot(sparsity: PyTree, step: int = 0, *, name: str = "one_shot") -> Schedule:
    """0 before `step` and the final sparsity from then on: prune once, then fine-tune.

    Args:
      sparsity: final sparsity, in [0, 1), or a tree of them.
      step: the step at which to prune.

    Example:
      >>> import jaxprune as jp
      >>> [jp.schedules.one_shot(0.9, step=2)(t) for t in range(4)]
      [0.0, 0.0, 0.9, 0.9]
    """
    check_whole(at_least=0, step=step)

    def make(sparsity: float) -> Schedule:
        return Schedule(name, sparsity, step, step, lambda p, xp: p * 0 + sparsity)

    return _for_each(make, sparsity=sparsity)


def iterative(final: PyTree, rounds: int, begin: int = 0, every: int = 1) -> Schedule:
    """`rounds` equal prunings: `s = final * r / rounds` after round r, at begin, begin + every, ...

    Args:
      final: final sparsity, in [0, 1), or a tree of them.
      rounds: number of prunings.
      begin: step of the first pruning.
      every: number of steps between two prunings.

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.iterative(0.9, rounds=3)(t), 6) for t in range(4)]
      [0.3, 0.6, 0.9, 0.9]
    """

    def make(final: float) -> Schedule:
        def after(r: Any) -> Any:
            return float(as_written(final) * r / rounds) if isinstance(r, int) else final * r / rounds

        return _rounds("iterative", final, rounds, begin, every, after)

    return _for_each(make, final=final)


def geometric(rate: PyTree, rounds: int, begin: int = 0, every: int = 1) -> Schedule:
    """`rounds` prunings, each of `rate` of the remaining weights: `s = 1 - (1 - rate)^r` after round r.

    Args:
      rate: fraction of the remaining weights that a round prunes, in [0, 1), or a tree of them.
      rounds: number of prunings.
      begin: step of the first pruning.
      every: number of steps between two prunings.

    Example:
      >>> import jaxprune as jp
      >>> schedule = jp.schedules.geometric(0.2, rounds=20)
      >>> [round(100 * (1 - schedule(r - 1)), 2) for r in (3, 7, 20)]  # kept, in %
      [51.2, 20.97, 1.15]

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635.
    """
    check_whole(rounds=rounds)

    def make(rate: float) -> Schedule:
        def after(r: Any) -> Any:
            return pruned_after(rate, r) if isinstance(r, int) else 1 - (1 - rate) ** r

        return _rounds("geometric", after(int(rounds)), rounds, begin, every, after)

    return _for_each(make, rate=rate)


def linear(final: PyTree, begin: int, end: int, every: int = 1, initial: PyTree = 0.0) -> Schedule:
    """Linear from `initial` to `final`: `s = s_i + (s_f - s_i) p`, p the progress from begin to end.

    Args:
      final: sparsity s_f at `end` and after, in [0, 1), or a tree of them.
      begin: step of the first update; the sparsity before it is 0.
      end: step at which `final` is reached.
      every: number of steps between two updates.
      initial: sparsity s_i at `begin`. If `final` is a tree: one number for all leaves, or a tree too.

    Raises:
      ValueError: if the schedule goes backwards (end < begin, final < initial), or a sparsity is outside [0, 1).

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.linear(0.8, begin=0, end=4)(t), 6) for t in range(6)]
      [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    """
    return _ramp("linear", final, begin, end, every, initial, _rising(lambda p, xp: p))


def cubic(final: PyTree, begin: int, end: int, every: int = 1, initial: PyTree = 0.0) -> Schedule:
    """Fast first, slow at the end: `s = s_f + (s_i - s_f) (1 - p)^3`, p the progress from begin to end.

    Args and Raises: as for `linear`.

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.cubic(0.9, begin=0, end=4)(t), 4) for t in range(6)]
      [0.0, 0.5203, 0.7875, 0.8859, 0.9, 0.9]

    References:
      Zhu, Gupta, To prune, or not to prune, 2017, arXiv:1710.01878.
    """
    return _ramp("cubic", final, begin, end, every, initial, _rising(lambda p, xp: 1 - (1 - p) ** 3))


def cosine(final: PyTree, begin: int, end: int, every: int = 1, initial: PyTree = 0.0) -> Schedule:
    """Slow at both ends: `s = s_i + (s_f - s_i) (1 - cos(pi p)) / 2`, p the progress from begin to end.

    Args and Raises: as for `linear`.

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.cosine(0.8, begin=0, end=4)(t), 4) for t in range(6)]
      [0.0, 0.1172, 0.4, 0.6828, 0.8, 0.8]
    """
    rising = _rising(lambda p, xp: (1 - xp.cos(math.pi * p)) / 2)
    return _ramp("cosine", final, begin, end, every, initial, rising)


def exponential(final: PyTree, begin: int, end: int, every: int = 1, initial: PyTree = 0.0) -> Schedule:
    """The density decays exponentially: `1 - s = (1 - s_i) ((1 - s_f) / (1 - s_i))^p`.

    Each update prunes the same fraction of the remaining weights, as in `geometric`; here the final sparsity is
    given instead of the rate.

    Args and Raises: as for `linear`.

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.exponential(0.9375, begin=0, end=4)(t), 4) for t in range(6)]
      [0.0, 0.5, 0.75, 0.875, 0.9375, 0.9375]
    """

    def curve(p: Any, first: float, last: float, xp: Any) -> Any:
        return 1 - (1 - first) * ((1 - last) / (1 - first)) ** p

    return _ramp("exponential", final, begin, end, every, initial, curve)


def _rounds(name: str, final: float, rounds: int, begin: int, every: int, after: Callable) -> Schedule:
    check_whole(rounds=rounds, every=every)
    check_whole(at_least=0, begin=begin)
    end = begin + (rounds - 1) * every

    def shape(progress: Any, xp: Any) -> Any:
        r = xp.round(progress * (rounds - 1)) + 1
        return after(int(r) if xp is np else r)

    return Schedule(name, final, begin, end, shape, every)


def _ramp(
    name: str, final: PyTree, begin: int, end: int, every: int, initial: PyTree, curve: Callable
) -> Schedule:
    """`curve(progress, initial, final, module)` from begin to end."""
    check_whole(every=every)
    check_whole(at_least=0, begin=begin, end=end)
    if end < begin:
        raise ValueError(f"`end` must not be before `begin`, got begin={begin}, end={end}.")

    def make(final: float, initial: float) -> Schedule:
        return Schedule(name, final, begin, end, lambda p, xp: curve(p, initial, final, xp), every)

    return _for_each(make, final=final, initial=initial)


def _rising(curve: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Goes from the initial to the final sparsity while the curve goes from 0 to 1."""
    return lambda p, initial, final, xp: initial + (final - initial) * curve(p, xp)


def _for_each(make: Callable[..., Schedule], **shares: PyTree) -> Schedule:
    """The schedule that `make` makes of checked floats; if the first sparsity is a tree, one for each leaf."""
    (first, tree), *others = shares.items()
    if is_share(tree):
        return make(**{name: _checked(name, share, "", shares) for name, share in shares.items()})
    paths, leaves, treedef = flatten_with_paths(tree)
    if not leaves:
        raise ValueError(f"`{first}` has no leaves: pass a number or a tree like the parameters.")
    columns = {first: leaves} | {
        name: [share] * len(leaves) if is_share(share) else aligned(tree, share, name)
        for name, share in others
    }
    parts = []
    for i, path in enumerate(paths):
        row = {name: column[i] for name, column in columns.items()}
        parts.append(make(**{name: _checked(name, share, path, row) for name, share in row.items()}))
    return dataclasses.replace(
        parts[0],
        final=jax.tree.unflatten(treedef, [part.final for part in parts]),
        shape=lambda p, xp: jax.tree.unflatten(treedef, [part.shape(p, xp) for part in parts]),
    )


def _checked(name: str, share: Any, path: str, shares: dict[str, Any]) -> float:
    check_fraction(name, share, path)
    if name == "initial" and shares["final"] < share:
        at = f" at {path!r}" if path else ""
        raise ValueError(
            f"`final` must be at least `initial`, got initial={share}, final={shares['final']}{at}: "
            "a schedule cannot go backwards, because pruned weights remain pruned."
        )
    return float(as_written(share))
