"""A budget of parameters or FLOPs for coupled units: the fewest units whose removal reaches a share of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.allocation import Scope, counts_to_prune
from jaxprune.selection import counts
from jaxprune.selection.counts import Count, as_count, known_count
from jaxprune.selection.keys import key_dtype, order_keys
from jaxprune.selection.on_host import host_keys, lowered
from jaxprune.surgery.unit_cost import UnitCost


@dataclasses.dataclass(frozen=True)
class UnitBudget:
    """The `Budget` of coupled units.

    With scope "global" units are pruned in the order of their scores, with "local" each group loses the same share of
    its units: as many, or the smallest share, as remove at least `round(sparsity * whole)` of the budget.

    Args:
      kind: what is counted.
      cost: of the model, as a function of the kept counts.
      round_to: what numbers of kept units are multiples of.
    """

    kind: Literal["params", "flops"]
    cost: UnitCost
    round_to: int

    def counts(self, shares: Any, scope: Scope, least: Sequence[int]) -> Any:
        """The amount to remove; with scope "local" the number of units that each group loses."""
        if isinstance(shares, list):
            raise ValueError(
                f"`sparsity` must be one number with budget={self.kind!r}, got one for each leaf: these are shares of "
                "the units of groups. Pass Coupled(groups) with budget='units'."
            )
        amount = self._amount(shares)
        if scope == "global":
            return amount
        removed, lost = _levels(self, tuple(least))
        known = known_count(amount)
        if known is not None:
            return [int(n) for n in lost[min(np.searchsorted(removed, known), len(removed) - 1)]]
        table = Count(*(jnp.asarray(w.astype(np.uint32)) for w in (removed >> 32, removed & 0xFFFFFFFF)))
        too_small = ~counts.less_equal(as_count(amount), table)
        place = jnp.minimum(jnp.sum(too_small, dtype=jnp.int32), len(removed) - 1)
        return list(jnp.asarray(lost, jnp.int32)[place])

    def check(self, shares: Any, scope: Scope, least: Sequence[int]) -> None:
        """Raises ValueError for a known share that can't be reached."""
        del scope
        if isinstance(shares, list):
            self.counts(shares, "local", least)  # says why not
            return
        amount = known_count(self._amount(shares))
        if amount is None:
            return
        sizes = np.array(self.cost.sizes)
        most = self.cost.whole - self.cost.known([int(n) for n in sizes - self.lost(sizes, least)])
        if amount > most:
            asked, share = float(np.asarray(shares)), most / max(self.cost.whole, 1)
            raise ValueError(
                f"`sparsity` {asked:g} of the {self.kind} can't be reached: with what `minimum` and "
                f"`round_to` keep, and the frozen and excluded groups, at most {int(share * 1e4) / 1e4:g} can be "
                "removed."
            )

    def lost(self, pruned: Any, least: Sequence[Any] | Any) -> Any:
        """How many units groups lose, of numbers to prune: the minimum is kept, and kept numbers are rounded up."""
        sizes = np.array(self.cost.sizes, np.int32)
        module = np if isinstance(pruned, np.ndarray) else jnp
        left = sizes - pruned
        if len(least):
            left = module.maximum(left, module.minimum(module.asarray(least, np.int32), sizes))
        return sizes - module.minimum(-(-left // self.round_to) * self.round_to, sizes)

    def reached(self, units: list[Any], amount: Any, pruned: list[Any], least: Sequence[Any]) -> list[Any]:
        """How many units each group loses when units are pruned in the order of their scores.

        Args:
          units: the scores of the units.
          amount: what to remove of the budget.
          pruned: units that are pruned before all others.
          least: units that each group keeps; empty for no minimum.
        """
        if all(isinstance(scores, np.ndarray) for scores in units):
            return self._reached_on_host(units, known_count(amount) or 0, pruned, least)
        ranks = _ranks(units, pruned)
        sizes = np.array(self.cost.sizes, np.int32)
        ends = np.cumsum(sizes)
        before = jnp.stack([jnp.int32(0) if p is None else jnp.sum(p, dtype=jnp.int32) for p in pruned])
        wanted = as_count(amount)
        whole = Count.of(self.cost.whole)

        def lost_at(number: jax.Array) -> jax.Array:
            total = jnp.append(jnp.int32(0), jnp.cumsum(ranks < number, dtype=jnp.int32))
            return jnp.maximum(self.lost(total[ends] - total[ends - sizes], least), before)

        def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) // 2
            removed = counts.subtract(whole, self.cost.traced(jnp.asarray(sizes) - lost_at(middle)))
            reaches = counts.less_equal(wanted, removed)
            return jnp.where(reaches, low, jnp.minimum(middle + 1, high)), jnp.where(reaches, middle, high)

        number = sum(self.cost.sizes)
        bounds = jnp.zeros_like(ranks, shape=()), jnp.full_like(ranks, number, shape=())
        low, _ = lax.fori_loop(0, number.bit_length() + 1, halve, bounds)
        return list(lost_at(low))

    def _reached_on_host(
        self, units: list[Any], amount: int, pruned: list[Any], least: Sequence[Any]
    ) -> list[int]:
        dtype = key_dtype(units)
        pairs = zip((host_keys(scores, dtype) for scores in units), pruned, strict=True)
        keys = np.concatenate([k if p is None else lowered(k, p) for k, p in pairs])
        ranks = np.empty(keys.size, np.int64)
        ranks[np.argsort(keys, kind="stable")] = np.arange(keys.size)
        starts = np.cumsum((0, *self.cost.sizes[:-1]))
        before = np.array([0 if p is None else int(p.sum()) for p in pruned])

        def lost_at(number: int) -> list[int]:
            found = np.add.reduceat(ranks < number, starts, dtype=np.int64)
            return [int(n) for n in np.maximum(self.lost(found, least), before)]

        low, high = 0, keys.size
        while low < high:
            middle = (low + high) // 2
            kept = [n - m for n, m in zip(self.cost.sizes, lost_at(middle), strict=True)]
            if self.cost.whole - self.cost.known(kept) >= amount:
                high = middle
            else:
                low = middle + 1
        return lost_at(low)

    def _amount(self, share: Any) -> Any:
        """How much to remove: `round(share * whole)`; an array's share is as exact as its float32."""
        (amount,) = counts_to_prune([share], [self.cost.whole], "local")
        if isinstance(amount, int):
            return amount
        amount, slack = as_count(amount), Count.of(self.cost.whole >> 23)
        return counts.where(counts.less_equal(slack, amount), counts.subtract(amount, slack), as_count(0))


def _ranks(units: list[Any], pruned: list[Any]) -> jax.Array:
    dtype = key_dtype(units)
    keys = jnp.concatenate([order_keys(u, p, dtype) for u, p in zip(units, pruned, strict=True)])
    places = jnp.arange(keys.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[jnp.argsort(keys, stable=True)].set(places)


@functools.lru_cache(maxsize=64)
def _levels(budget: UnitBudget, least: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What is removed, and how many units each group loses, when all lose the share i / n, by size.

    `n` is the size of a group. Half units are rounded to even numbers, as for masks.
    """
    steps = sorted({Fraction(0)} | {Fraction(i, n) for n in set(budget.cost.sizes) for i in range(1, n + 1)})
    top, bottom = (np.array([getattr(step, name) for step in steps]) for name in ("numerator", "denominator"))
    sizes = np.array(budget.cost.sizes, np.int64)
    number, rest = np.divmod(top[:, None] * sizes, bottom[:, None])
    half = 2 * rest - bottom[:, None]
    lost = budget.lost(number + ((half > 0) | ((half == 0) & (number % 2 == 1))), least).astype(np.int64)
    return budget.cost.whole - budget.cost.known(list((sizes - lost).T)), lost
