"""Scheduling: sparsity as a function of the step.

Every schedule maps a step (or a round) to a sparsity. A Python int gives a Python float in double precision;
an array, also a traced one, gives float32. The value changes only at `begin`, `begin + every`, ..., so that
`gradual` recomputes its masks at those steps only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxprune.allocation import check_fraction, pruned_after
from jaxprune.selection import as_written


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A schedule: call it with a step. Its fields are for reading; the functions of this module make it.

    Args:
      name: which function made it.
      final: sparsity that it ends at.
      begin: first step with an update.
      end: step from which on the sparsity is `final`.
      shape: progress in [0, 1], module (numpy or jax.numpy) -> sparsity.
      every: steps between two updates.
    """

    name: str
    final: float
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
        value = xp.where(step >= self.end, self.final, self.shape(fraction, xp))
        value = xp.where(step < self.begin, 0.0, value)
        return float(value) if exact else value.astype(jnp.float32)


def constant(sparsity: float) -> Schedule:
    """The same sparsity from step 0 on.

    Example:
      >>> import jaxprune as jp
      >>> jp.schedules.constant(0.9)(0)
      0.9
    """
    return one_shot(sparsity, step=0, name="constant")


def one_shot(sparsity: float, step: int = 0, *, name: str = "one_shot") -> Schedule:
    """Nothing before `step`, all of it at once from there on: prune once, then fine-tune.

    Args:
      sparsity: final sparsity, in [0, 1).
      step: when to prune.

    Example:
      >>> import jaxprune as jp
      >>> [jp.schedules.one_shot(0.9, step=2)(t) for t in range(4)]
      [0.0, 0.0, 0.9, 0.9]
    """
    check_fraction("sparsity", sparsity)
    _check_steps(step=step)
    return Schedule(name, float(sparsity), step, step, lambda p, xp: p * 0 + float(sparsity))


def iterative(final: float, rounds: int, begin: int = 0, every: int = 1) -> Schedule:
    """`rounds` equal prunings: `s = final * r / rounds` after round r, at begin, begin + every, ...

    Args:
      final: final sparsity, in [0, 1).
      rounds: number of prunings.
      begin: step of the first one.
      every: steps from one to the next.

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.iterative(0.9, rounds=3)(t), 6) for t in range(4)]
      [0.3, 0.6, 0.9, 0.9]
    """
    check_fraction("final", final)

    def after(r: Any) -> Any:
        return float(as_written(final) * r / rounds) if isinstance(r, int) else final * r / rounds

    return _rounds("iterative", final, rounds, begin, every, after)


def geometric(rate: float, rounds: int, begin: int = 0, every: int = 1) -> Schedule:
    """`rounds` prunings that each take `rate` of what remains: `s = 1 - (1 - rate)^r` after round r.

    Args:
      rate: share of the remaining weights that a round prunes, in [0, 1).
      rounds: number of prunings.
      begin: step of the first one.
      every: steps from one to the next.

    Example:
      >>> import jaxprune as jp
      >>> schedule = jp.schedules.geometric(0.2, rounds=20)
      >>> [round(100 * (1 - schedule(r - 1)), 2) for r in (3, 7, 20)]  # kept, in %
      [51.2, 20.97, 1.15]

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635.
    """
    check_fraction("rate", rate)
    _check_positive("rounds", rounds)

    def after(r: Any) -> Any:
        return pruned_after(rate, r) if isinstance(r, int) else 1 - (1 - float(rate)) ** r

    return _rounds("geometric", after(int(rounds)), rounds, begin, every, after)


def linear(final: float, begin: int, end: int, every: int = 1, initial: float = 0.0) -> Schedule:
    """Straight from `initial` to `final`: `s = s_i + (s_f - s_i) p`, p the progress from begin to end.

    Args:
      final: sparsity s_f at `end` and after, in [0, 1).
      begin: step of the first update; the sparsity before it is 0.
      end: step at which `final` is reached.
      every: steps from one update to the next.
      initial: sparsity s_i at `begin`.

    Raises:
      ValueError: a schedule that goes backwards (end < begin, final < initial), a sparsity outside [0, 1).

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.linear(0.8, begin=0, end=4)(t), 6) for t in range(6)]
      [0.0, 0.2, 0.4, 0.6, 0.8, 0.8]
    """
    return _ramp("linear", final, begin, end, every, initial, lambda p, xp: p)


def cubic(final: float, begin: int, end: int, every: int = 1, initial: float = 0.0) -> Schedule:
    """Fast first, slow at the end: `s = s_f + (s_i - s_f) (1 - p)^3`, p the progress from begin to end.

    Args and Raises: as for `linear`.

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.cubic(0.9, begin=0, end=4)(t), 4) for t in range(6)]
      [0.0, 0.5203, 0.7875, 0.8859, 0.9, 0.9]

    References:
      Zhu, Gupta, To prune, or not to prune, 2017, arXiv:1710.01878.
    """
    return _ramp("cubic", final, begin, end, every, initial, lambda p, xp: 1 - (1 - p) ** 3)


def cosine(final: float, begin: int, end: int, every: int = 1, initial: float = 0.0) -> Schedule:
    """Slow at both ends: `s = s_i + (s_f - s_i) (1 - cos(pi p)) / 2`, p the progress from begin to end.

    Args and Raises: as for `linear`.

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.cosine(0.8, begin=0, end=4)(t), 4) for t in range(6)]
      [0.0, 0.1172, 0.4, 0.6828, 0.8, 0.8]
    """
    return _ramp("cosine", final, begin, end, every, initial, lambda p, xp: (1 - xp.cos(math.pi * p)) / 2)


def exponential(final: float, begin: int, end: int, every: int = 1, initial: float = 0.0) -> Schedule:
    """The density decays exponentially: `1 - s = (1 - s_i) ((1 - s_f) / (1 - s_i))^p`.

    Each update prunes the same share of what remains: `geometric`, told by its end instead of its rate.

    Args and Raises: as for `linear`.

    Example:
      >>> import jaxprune as jp
      >>> [round(jp.schedules.exponential(0.9375, begin=0, end=4)(t), 4) for t in range(6)]
      [0.0, 0.5, 0.75, 0.875, 0.9375, 0.9375]
    """
    _check_ramp(final, begin, end, every, initial)
    ratio = (1 - float(final)) / (1 - float(initial))
    return Schedule(
        "exponential", float(final), begin, end, lambda p, xp: 1 - (1 - float(initial)) * ratio**p, every
    )


def _rounds(name: str, final: float, rounds: int, begin: int, every: int, after: Callable) -> Schedule:
    _check_positive("rounds", rounds)
    _check_positive("every", every)
    _check_steps(begin=begin)
    end = begin + (rounds - 1) * every

    def shape(progress: Any, xp: Any) -> Any:
        r = xp.round(progress * (rounds - 1)) + 1
        return after(int(r) if xp is np else r)

    return Schedule(name, float(final), begin, end, shape, every)


def _ramp(
    name: str, final: float, begin: int, end: int, every: int, initial: float, curve: Callable
) -> Schedule:
    _check_ramp(final, begin, end, every, initial)
    start, rise = float(initial), float(final) - float(initial)
    return Schedule(name, float(final), begin, end, lambda p, xp: start + rise * curve(p, xp), every)


def _check_ramp(final: float, begin: int, end: int, every: int, initial: float) -> None:
    check_fraction("final", final)
    check_fraction("initial", initial)
    _check_positive("every", every)
    _check_steps(begin=begin, end=end)
    if end < begin:
        raise ValueError(f"`end` must not be before `begin`, got begin={begin}, end={end}.")
    if final < initial:
        raise ValueError(
            f"`final` must be at least `initial`, got initial={initial}, final={final}: "
            "a schedule cannot go backwards, what is pruned stays pruned."
        )


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")


def _check_steps(**steps: Any) -> None:
    for name, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise ValueError(f"`{name}` must be a step, a whole number of at least 0, got {value!r}.")
