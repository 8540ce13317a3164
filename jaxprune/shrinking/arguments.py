"""Arguments of removal in rounds: functions, and how much is removed in each round."""

from __future__ import annotations

from typing import Any

from jax.core import Tracer

from jaxprune.allocation import is_share
from jaxprune.round_sparsity import ByRate, number_of_rounds, sparsity_of_rounds
from jaxprune.structures import Unstructured


def check_functions(**functions: Any) -> None:
    """Raises TypeError for an argument that can't be called."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"`{name}` must be a function, got {function!r}.")


def sparsities_of(rounds: Any, rate: Any, sparsities: Any) -> list[float]:
    """The sparsity after each round."""
    number = number_of_rounds(rounds, rate, sparsities, at_least=1)
    found = sparsity_of_rounds(number, rate, sparsities)
    name, given = ("rate", [rate]) if isinstance(found, ByRate) else ("sparsities", found.sparsities)
    if any(isinstance(share, Tracer) or not is_share(share) for share in given):
        raise TypeError(f"`{name}` must be known numbers, because sizes follow from them, got {given!r}.")
    found.check(number, Unstructured())
    shares = [float(found.share(round)) for round in range(1, number + 1)]
    if name == "rate" and not shares[-1]:
        raise ValueError(f"`rate` must be in (0, 1), got {rate!r}: a round would remove nothing.")
    return shares
