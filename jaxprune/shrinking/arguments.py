"""Arguments of removal in rounds: functions, and how much is removed in each round."""

from __future__ import annotations

from typing import Any

from jax.core import Tracer

from jaxprune.allocation import is_share
from jaxprune.round_sparsity import number_of_rounds, sparsity_of_rounds
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
    found.check(number, Unstructured())
    shares = [found.share(round) for round in range(1, number + 1)]
    if any(isinstance(share, Tracer) or not is_share(share) for share in shares):
        name, value = ("rate", rate) if sparsities is None else ("sparsities", sparsities)
        raise TypeError(f"`{name}` must be known numbers, because sizes follow from them, got {value!r}.")
    if shares[-1] == 0 and sparsities is None:
        raise ValueError(f"`rate` must be in (0, 1), got {rate!r}: a round would remove nothing.")
    return list(map(float, shares))
