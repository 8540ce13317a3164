"""Allocation: the sparsity of each leaf, or of all leaves together."""

from __future__ import annotations

import math
import numbers
from typing import Any, Literal

import jax

from jaxprune.params import PyTree, aligned, flatten_with_paths
from jaxprune.selection import as_written, count_to_prune
from jaxprune.structures import Structure

Scope = Literal["global", "local"]


def check_scope(scope: str, structure: Structure) -> None:
    """Raises ValueError for an unknown scope, or one that has no meaning for the structure."""
    if scope not in ("global", "local"):
        raise ValueError(f"`scope` must be 'global' or 'local', got {scope!r}.")
    if isinstance(structure, type) or not callable(getattr(structure, "cut", None)):
        raise TypeError(f"`structure` must be a structure such as Unstructured(), got {structure!r}.")
    structure.check_scope(scope)


def check_limit(name: str, share: Any, structure: Structure, after: str = "") -> None:
    """Raises ValueError for a known share beyond the sparsity that the structure fixes."""
    limit = structure.fixed_sparsity
    if limit is not None and share > limit + 1e-6:
        raise ValueError(
            f"`{name}` must not pass {limit:g}, the sparsity of {structure}, got {share:g}{after}."
        )


def check_fraction(name: str, value: Any, path: str | None = None) -> None:
    """Raises if a value is not a number, or is known and not in [0, 1)."""
    at = f" at {path!r}" if path else ""
    if isinstance(value, bool) or not (hasattr(value, "dtype") or isinstance(value, numbers.Real)):
        raise TypeError(f"`{name}` must be a number in [0, 1), got {value!r}{at}.")
    if isinstance(value, jax.core.Tracer):
        return
    shape = getattr(value, "shape", ())
    if shape != ():
        raise ValueError(f"`{name}` must be a scalar, got shape {shape}{at}.")
    number = float(value)
    if not 0 <= number < 1:
        hint = f" It is a fraction: pass {number / 100:g}." if 1 < number < 100 else ""
        raise ValueError(f"`{name}` must be in [0, 1), got {value}{at}.{hint}")


def is_share(value: Any) -> bool:
    """Whether a sparsity is one for all leaves (or meant as one), and not a tree."""
    is_scalar = isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0
    return is_scalar or isinstance(value, str) or value is None


def pruned_after(rate: Any, rounds: int) -> float:
    """`1 - (1 - rate)^rounds` for the rate as it is written: one round at 0.1 prunes exactly 0.1."""
    return float(1 - (1 - as_written(rate)) ** int(rounds))


def shares_of(sparsity: Any, scores: PyTree, chosen: list[int]) -> Any:
    """One checked share for all leaves, or a list with one for each chosen leaf."""
    if is_share(sparsity):
        check_fraction("sparsity", sparsity)
        return sparsity
    paths, _, _ = flatten_with_paths(scores)
    shares = aligned(scores, sparsity, "sparsity")
    for i in chosen:
        check_fraction("sparsity", shares[i], paths[i])
    return [shares[i] for i in chosen]


def counts_to_prune(shares: Any, units: list[int], scope: Scope) -> Any:
    """Number of units to prune: one count for all leaves, or a list with one for each leaf."""
    if isinstance(shares, list):
        return [_count_to_prune(share, n) for share, n in zip(shares, units, strict=True)]
    if scope == "local":
        return [_count_to_prune(shares, n) for n in units]
    return _count_to_prune(shares, sum(units))


def _count_to_prune(share: Any, n: int) -> Any:
    is_array = isinstance(share, jax.Array) and not isinstance(share, jax.core.Tracer)
    return _compiled_count(share, n) if is_array else count_to_prune(share, n)


_compiled_count = jax.jit(count_to_prune, static_argnums=1)


def check_minimum(minimum: Any) -> None:
    """Raises ValueError unless `minimum` is a whole number or a fraction in (0, 1)."""
    if isinstance(minimum, bool) or not isinstance(minimum, numbers.Real) or minimum < 0:
        raise ValueError(f"`minimum` must be a whole number or a fraction in (0, 1), got {minimum!r}.")
    if not isinstance(minimum, numbers.Integral) and not minimum < 1:
        raise ValueError(
            f"`minimum` must be a whole number or a fraction in (0, 1), got {minimum!r}. "
            "An int is a number of units of each leaf."
        )


def least_kept(minimum: int | float, units: list[int]) -> list[int]:
    """The minimum number of units that each leaf keeps: `minimum` or that fraction, at most all of its units."""
    if isinstance(minimum, numbers.Integral):
        return [min(int(minimum), n) for n in units]
    share = as_written(minimum)
    return [math.ceil(share * n) for n in units]


def check_least_kept(counts: Any, units: list[int], least: list[int], paths: list[str]) -> None:
    """Raises ValueError if known counts to prune leave less than the minimum."""
    if isinstance(counts, list):
        for count, n, kept, path in zip(counts, units, least, paths, strict=True):
            if isinstance(count, int) and count > n - kept:
                raise ValueError(
                    f"`minimum` asks for {kept} of the {n} units at {path!r}, but `sparsity` prunes {count}. "
                    "Lower one of the two, exclude the leaf, or use scope='global'."
                )
    elif isinstance(counts, int) and counts > sum(units) - sum(least):
        raise ValueError(
            f"`minimum` keeps {sum(least)} of {sum(units)} units in all, but `sparsity` prunes {counts}. "
            "Lower one of the two."
        )
