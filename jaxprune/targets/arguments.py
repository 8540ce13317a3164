"""The arguments of `plan_to`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxprune.params import PyTree
from jaxprune.surgery.groups import Groups, find_groups
from jaxprune.surgery.layers import Branches


def checked_target(targets: Mapping[str, float | None]) -> tuple[str, float]:
    """The one target that is given, and its share.

    Raises:
      ValueError: if there is not exactly one in (0, 1).
    """
    given = {name: share for name, share in targets.items() if share is not None}
    if len(given) != 1:
        said = ", ".join(f"{name}={share!r}" for name, share in given.items()) or "none"
        raise ValueError(f"pass exactly one of {', '.join(f'`{name}`' for name in targets)}, got {said}.")
    ((name, share),) = given.items()
    if not 0 < share < 1:
        raise ValueError(
            f"`{name}` must be in (0, 1), got {share!r}. It is the share of the dense model's that is left: pass 0.5 "
            "for half."
        )
    return name, float(share)


def check_choices(scope: Any, normalize: Any, runtime: Any, tolerance: float, **whole: int | None) -> None:
    """Raises ValueError for an argument that is out of range."""
    for name, value, allowed in (
        ("scope", scope, ("local", "global")),
        ("normalize", normalize, ("mean", None)),
    ):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    if not callable(runtime) and runtime not in ("jax", "onnx"):
        raise ValueError(
            f'`runtime` must be "jax", "onnx" or a function (fn, params, inputs) -> seconds, got {runtime!r}.'
        )
    if not 0 < tolerance < 1:
        raise ValueError(f"`tolerance` must be in (0, 1), got {tolerance!r}.")
    for name, number in whole.items():
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise ValueError(f"`{name}` must be a positive whole number, got {number!r}.")


def check_inputs(given: Any, inputs: tuple[Any, ...]) -> None:
    """Raises ValueError if there are fewer or more inputs than those that were analysed."""
    for found in given if isinstance(given, tuple) else (given,):
        analysed = getattr(found.model if isinstance(found, Groups) else found, "inputs", inputs)
        if len(inputs) != len(analysed):
            wanted = "1 input" if len(analysed) == 1 else f"{len(analysed)} inputs"
            raise ValueError(
                f"`inputs` must be those of `fn` that were analysed, {wanted} in one tuple, got {len(inputs)}. Pass "
                f"{_tuple_of(len(analysed))}."
            )


def _tuple_of(number: int) -> str:
    names = ", ".join(f"x{i + 1}" for i in range(number))
    return f"({names},)" if number == 1 else f"({names})"


def parts_of(
    given: Any, fn: Callable, params: PyTree, inputs: tuple[Any, ...]
) -> tuple[Groups, bool, Branches | None]:
    """(the groups, whether they may lose units, the branches if there are any).

    Raises:
      TypeError: if it is neither groups nor branches nor a pair of both.
    """
    found = given if isinstance(given, tuple) else (given,)
    groups = [one for one in found if isinstance(one, Groups)]
    branches = [one for one in found if isinstance(one, Branches)]
    if not found or len(groups) + len(branches) != len(found) or max(len(groups), len(branches)) > 1:
        raise TypeError(
            "`groups` must be what `find_groups` or `find_branches` found, or a tuple of both, got "
            f"{given if isinstance(given, str | int) else type(given).__name__!r}."
        )
    of_units = groups[0] if groups else find_groups(fn, params, *inputs)
    return of_units, bool(groups), branches[0] if branches else None
