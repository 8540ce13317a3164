"""What a model costs as a function of how many units each group keeps: a polynomial with whole coefficients."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.selection import counts
from jaxprune.selection.counts import Count
from jaxprune.surgery import cost
from jaxprune.surgery.groups import Groups
from jaxprune.surgery.inference.axes import Atom, Axis, normal, parts_of

_MOST = 1 << 63


@dataclasses.dataclass(frozen=True)
class UnitCost:
    """The sum over the terms of coefficient x product of kept counts.

    Args:
      sizes: how many units each group has.
      factors: for each term the groups whose kept counts it multiplies, one as often as it occurs.
      coefficients: of the terms.
    """

    sizes: tuple[int, ...]
    factors: tuple[tuple[int, ...], ...]
    coefficients: tuple[int, ...]

    @functools.cached_property
    def whole(self) -> int:
        """The cost with nothing pruned."""
        return int(self.known(self.sizes))

    def known(self, kept: Sequence[Any]) -> Any:
        """The cost for known counts, or for int64 arrays of counts."""
        return sum(
            coefficient * math.prod(kept[group] for group in of_term)
            for coefficient, of_term in zip(self.coefficients, self.factors, strict=True)
        )

    def traced(self, kept: jax.Array) -> Count:
        """The cost for an array of counts, exact without 64-bit numbers."""
        words = np.array(self.coefficients, np.uint64)
        value = Count(*(jnp.asarray(w.astype(np.uint32)) for w in (words >> np.uint64(32), words)))
        padded = jnp.append(kept.astype(jnp.uint32), jnp.uint32(1))
        most = max(map(len, self.factors), default=0)
        places = np.array([[*of, *[len(self.sizes)] * (most - len(of))] for of in self.factors], np.int32)
        for place in range(most):
            value = counts.times(value, padded[places[:, place]])
        return counts.total(value)


def unit_cost(
    groups: Groups, numbers: Mapping[Atom, int], kind: Literal["params", "flops", "bytes"]
) -> UnitCost:
    """The parameters, FLOPs or bytes of a model, where the groups with these numbers lose units.

    A conditional counts as the branch that is the most expensive with nothing pruned.

    Raises:
      ValueError: if the cost is not a known number, or is beyond 2^63.
    """
    kept: Any = _Kept(numbers)
    if kind == "flops":
        found = cost.flops(groups.model.frame, kept)
    else:
        found = (cost.parameters if kind == "params" else cost.nbytes)(groups.model, kept)
    result = _unit_cost(numbers, found)
    if result.whole >= _MOST:
        raise ValueError(
            f"`budget` {kind!r} is beyond 2^63 for these inputs. Find the groups with a smaller batch."
        )
    return result


def part_costs(groups: Groups, numbers: Mapping[Atom, int]) -> dict[Hashable, UnitCost]:
    """The same for each of `cost.parts`."""
    kept: Any = _Kept(numbers)
    return {key: _unit_cost(numbers, found) for key, found in cost.parts(groups.model.frame, kept).items()}


def _unit_cost(numbers: Mapping[Atom, int], found: Any) -> UnitCost:
    sizes = [0] * len(numbers)
    for atom, number in numbers.items():
        sizes[number] = atom.size
    terms = _terms(found)
    return UnitCost(tuple(sizes), tuple(terms), tuple(terms.values()))


class _Polynomial:
    """In the kept counts of groups: groups of a term, in order -> coefficient."""

    def __init__(self, terms: Mapping[tuple[int, ...], int], whole: int):
        self.terms = terms
        self.whole = whole  # with nothing pruned

    def __add__(self, other: Any) -> _Polynomial:
        terms = dict(self.terms)
        for factors, coefficient in _terms(other).items():
            terms[factors] = terms.get(factors, 0) + coefficient
        return _Polynomial(terms, self.whole + _whole(other))

    def __mul__(self, other: Any) -> _Polynomial:
        terms: dict[tuple[int, ...], int] = {}
        for a, x in self.terms.items():
            for b, y in _terms(other).items():
                factors = tuple(sorted(a + b))
                terms[factors] = terms.get(factors, 0) + x * y
        return _Polynomial(terms, self.whole * _whole(other))

    def __gt__(self, other: Any) -> bool:
        return self.whole > _whole(other)

    def __lt__(self, other: Any) -> bool:
        return self.whole < _whole(other)

    __radd__, __rmul__ = __add__, __mul__


def _terms(value: Any) -> Mapping[tuple[int, ...], int]:
    return value.terms if isinstance(value, _Polynomial) else {(): value}


def _whole(value: Any) -> int:
    return value.whole if isinstance(value, _Polynomial) else value


class _Kept:
    """Gives the size of an axis as a polynomial, as `Keep` gives it for known units."""

    def __init__(self, numbers: Mapping[Atom, int]):
        self.numbers = numbers

    def size(self, axis: Axis) -> Any:
        total: Any = 1
        for atom in normal(axis):
            if not isinstance(atom.size, int):
                raise ValueError(
                    "`budget` needs known sizes, but the groups were found with symbolic ones. "
                    "Call jp.find_groups with arrays."
                )
            if atom.parts is not None:
                total = total * sum(self.size(part) for part in parts_of(atom))
            elif atom in self.numbers:
                total = total * _Polynomial({(self.numbers[atom],): 1}, atom.size)
            else:
                total = total * atom.size
        return total
