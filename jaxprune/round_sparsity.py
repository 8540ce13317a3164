"""How many rounds there are and how much is pruned after each: at a constant rate, or as given round by round."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.allocation import check_fraction, check_limit, is_share, pruned_after
from jaxprune.masking import Units
from jaxprune.params import flatten_with_paths
from jaxprune.structures import Structure
from jaxprune.whole_numbers import check_whole


@dataclasses.dataclass(frozen=True, eq=False)
class ByRate:
    """Each round prunes the same share of the units that are left: `1 - (1 - rate)^r` after r rounds.

    Args:
      rate: a share, which may be traced, or a tree like the parameters of them.
    """

    rate: Any

    def check(self, rounds: int, structure: Structure) -> None:
        """Raises ValueError for a rate outside [0, 1), or one that passes what the structure allows."""
        if not is_share(self.rate):
            return
        check_fraction("rate", self.rate)
        if not isinstance(self.rate, Tracer):
            after = f" after {rounds} rounds at rate {float(self.rate):g}"
            check_limit("rounds", self.share(rounds), structure, after)

    def after(self, units: Units, round: int) -> Any:
        """The sparsity after so many rounds: one share, or a list with one for each array of units."""
        if is_share(self.rate):
            return self.share(round)
        rates = units.each(self.rate, "rate")
        for rate, name in zip(rates, units.cut.names, strict=True):
            check_fraction("rate", rate, name)
        return [pruned_after(float(rate), round) for rate in rates]

    def share(self, rounds: int) -> Any:
        """The sparsity after so many rounds at one rate for all."""
        if isinstance(self.rate, Tracer):
            return -jnp.expm1(rounds * jnp.log1p(-self.rate.astype(jnp.float32)))
        return pruned_after(float(self.rate), rounds)


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """After round r the sparsity is the r-th of those given.

    Args:
      sparsities: one for each round, each a share, which may be traced, or a tree like the parameters of them.
    """

    sparsities: tuple[Any, ...]

    def check(self, rounds: int, structure: Structure) -> None:
        """Raises ValueError for a sparsity outside [0, 1), one below that before, or one that the structure forbids."""
        before: dict[str, float] = {}
        for number, sparsity in enumerate(self.sparsities, 1):
            paths, shares, _ = flatten_with_paths(sparsity)
            for path, share in zip(paths, shares, strict=True):
                name = f"sparsities[{number - 1}]"
                check_fraction(name, share, path or None)
                if isinstance(share, Tracer):
                    continue
                check_limit(name, float(share), structure)
                if float(share) < before.get(path, 0.0):
                    at = f" at {path!r}" if path else ""
                    raise ValueError(
                        f"`sparsities` must not fall, because pruned units remain pruned, got {before[path]:g} and "
                        f"then {float(share):g} in round {number}{at}."
                    )
                before[path] = float(share)

    def share(self, rounds: int) -> Any:
        """The sparsity after so many rounds, at least one, as it is given."""
        return self.sparsities[rounds - 1]

    def after(self, units: Units, round: int) -> Any:
        """The sparsity after so many rounds: one share, or a list with one for each array of units."""
        if round == 0:
            first = units.shares(self.sparsities[0]) if self.sparsities else 0.0
            return [0.0] * len(first) if isinstance(first, list) else 0.0
        return units.shares(self.sparsities[round - 1])


RoundSparsity = ByRate | Given
Sparsities = Sequence[Any] | Callable[[int], Any] | jax.Array


def number_of_rounds(rounds: Any, rate: Any, sparsities: Any, at_least: int = 0) -> int:
    """The number of prunings of an experiment that is given two of these.

    Raises:
      TypeError: neither `rounds` nor `sparsities`.
      ValueError: both `rate` and `sparsities`; fewer rounds than `at_least`, or others than there are sparsities.
    """
    if rounds is not None:
        check_whole(at_least, rounds=rounds)
    if sparsities is None:
        if rounds is None:
            raise TypeError("`rounds` must be given, or `sparsities` with one for each round.")
        return int(rounds)
    if rate is not None:
        raise ValueError("pass either `rate` or `sparsities`, and not both.")
    return len(given_sparsities(sparsities, rounds))


def sparsity_of_rounds(rounds: int, rate: Any, sparsities: Any) -> RoundSparsity:
    """How much is pruned after each of so many rounds: as `sparsities` say, or else at the rate, 0.2 if it is None."""
    if sparsities is None:
        return ByRate(0.2 if rate is None else rate)
    return Given(given_sparsities(sparsities, rounds))


def given_sparsities(sparsities: Any, rounds: int | None) -> tuple[Any, ...]:
    """One sparsity a round from a sequence, an array or a schedule of the number of rounds.

    Raises:
      ValueError: another number of sparsities than rounds; a schedule without `rounds`.
      TypeError: what is none of these.

    Example:
      >>> import jaxprune as jp
      >>> from jaxprune.round_sparsity import given_sparsities
      >>> given_sparsities(jp.schedules.linear(0.9, begin=0, end=3), rounds=3)
      (0.3, 0.6, 0.9)
    """
    if callable(sparsities):
        if rounds is None:
            raise ValueError(
                "`rounds` must be given with a schedule as `sparsities`: it has no end of its own."
            )
        return tuple(_rounded(sparsities(number)) for number in range(1, rounds + 1))
    if getattr(sparsities, "ndim", None) == 1:
        sparsities = list(sparsities) if isinstance(sparsities, Tracer) else np.asarray(sparsities).tolist()
    if not isinstance(sparsities, Sequence) or isinstance(sparsities, str) or not sparsities:
        raise TypeError(
            "`sparsities` must be a sequence with the sparsity after each round, or a schedule of the number of "
            f"rounds, got {sparsities!r}."
        )
    if rounds is not None and rounds != len(sparsities):
        raise ValueError(
            f"`sparsities` must have one entry for each of the {rounds} rounds, got {len(sparsities)}."
        )
    return tuple(sparsities)


def _rounded(share: Any) -> Any:
    """A schedule's share without the last digits of its arithmetic."""
    return jax.tree.map(lambda x: round(x, 12) if isinstance(x, float) else x, share)
