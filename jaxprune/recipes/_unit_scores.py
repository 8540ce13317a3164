"""Scores of units and layers that are removed: how they are told from scores of weights, and called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from jaxprune.params import PyTree
from jaxprune.recipes._scoring import Task
from jaxprune.scores._scorer import first_of, parameters_of

UNITS = ("groups", "branches")  # first arguments of scores of units, and of layers
WEIGHTS = ("params", "loss_fn", "fn")  # first arguments of scores of weights
_GIVEN = ("params", "loss_fn", "batches", "key", "rng")  # what a score of units is given by name
_NO_PARAMS = ("key", "rng", "structure")  # second arguments of scores of weights
_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_of_units(score: Callable[..., Any], units: str) -> bool:
    """Whether a score ranks units, and not weights.

    Its first argument tells: (params), (loss_fn, params, ...) and (fn, params, ...) rank weights. Where that has
    another name, the score ranks units if it needs a second argument that may be the parameters.

    Args:
      score: any score.
      units: "groups" or "branches", the name of the first argument.
    """
    first = first_of(score)
    if first in (*UNITS, *WEIGHTS):
        return first == units
    second = [*parameters_of(score).values()][1:2]
    return any(_is_needed(parameter) and parameter.name not in _NO_PARAMS for parameter in second)


def check_unit_score(score: Callable[..., Any]) -> None:
    """Raises TypeError for a score of units that needs what an experiment does not give it."""
    parameters = parameters_of(score)
    for name, parameter in [*parameters.items()][2:]:
        if _is_needed(parameter) and name not in _GIVEN:
            raise TypeError(
                f"`score` must take (groups, params) or (branches, params), and may take loss_fn, batches and key, got "
                f"one that takes ({', '.join(parameters)}). Bind its other arguments, as in lambda groups, params: ..."
            )


def needs_of(score: Callable[..., Any]) -> tuple[str, ...]:
    """What a score of units must be given of an experiment: "loss_fn", "batches", both or none."""
    parameters = parameters_of(score)
    return tuple(name for name in ("loss_fn", "batches") if name in parameters and _is_open(parameters[name]))


def call_unit_score(score: Callable[..., Any], units: Any, params: PyTree, task: Task) -> Any:
    """The scores of units; what the score needs beside the parameters is passed by the names of its arguments.

    Args:
      score: a score of units.
      units: the `Groups` or `Branches` at the present size.
      params: the present parameters.
      task: `loss_fn` at the present size, `batches` and `key`. Arguments that have a default keep it.
    """
    given = dict(zip(_GIVEN, (params, task.loss_fn, task.batches, task.key, task.key), strict=True))
    positional, named = [units], {}
    for number, (name, parameter) in enumerate([*parameters_of(score).items()][1:], 1):
        if number == 1 and _is_needed(parameter) and name not in given:
            positional.append(params)
        elif name in given and _is_open(parameter):
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(given[name])
            else:
                named[name] = given[name]
    return score(*positional, **named)


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in _STARS


def _is_open(parameter: inspect.Parameter) -> bool:
    return _is_needed(parameter) or parameter.default is None
