"""The points of `jaxprune claims` that compare methods: what is claimed, and the methods on both sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

import jaxprune as jp
from jaxprune.experiments.claims.settings import ClaimsSettings
from jaxprune.experiments.classification import Classification, classification
from jaxprune.experiments.compare.combinations import Method, dense
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.experiments.data import Data

# With 9 rounds the equal steps to 90 % are 10 % each.
_ROUNDS_TO_EXTREMES, _ROUNDS = 9, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """A point: the methods that are compared, and the pairs whose difference is the claim.

    pairs: (method, other method): the claim is about the accuracy of the first minus that of the second.
    """

    name: str
    title: str
    claim: str
    settings: CompareSettings
    task: Classification
    methods: list[Method]
    pairs: tuple[tuple[str, str], ...]


def comparisons(settings: ClaimsSettings, data: Data) -> list[Comparison]:
    """The comparisons of the chosen points."""
    make = {
        "scheduling": _scheduling,
        "scope": _scope,
        "initialization": _initialization,
        "structure": _structure,
    }
    tasks: dict[str, Classification] = {}

    def task(model: Any) -> Classification:
        if model not in tasks:
            tasks[model] = classification(model, data, settings.batch_size)
        return tasks[model]

    return [make[point](settings, task) for point in settings.points if point in make]


def _scheduling(settings: ClaimsSettings, task: Callable[[str], Classification]) -> Comparison:
    sparsities = 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999
    continued = jp.RewindLearningRate()
    of = settings.comparison("lenet", _ROUNDS_TO_EXTREMES + 1, sparsities, _ROUNDS_TO_EXTREMES + 1)
    schedulings = {
        "one-shot": jp.OneShot(),
        "recursive": jp.Recursive(_ROUNDS_TO_EXTREMES),
        "recursive, equal steps": jp.Recursive(_ROUNDS_TO_EXTREMES, "equal"),
    }
    methods = _methods(
        of, {name: {"scheduling": s, "initialization": continued} for name, s in schedulings.items()}
    )
    return Comparison(
        "scheduling",
        "One-shot against recursive pruning",
        "At low sparsities both are equal; at high ones one-shot pruning falls and recursive pruning stays.",
        of,
        task("lenet"),
        methods,
        (("recursive", "one-shot"), ("recursive, equal steps", "one-shot")),
    )


def _scope(settings: ClaimsSettings, task: Callable[[str], Classification]) -> Comparison:
    of = settings.comparison("lenet", _ROUNDS + 1, (0.8, 0.9, 0.95, 0.98, 0.99, 0.995), _ROUNDS + 1)
    choices = {
        f"{when}, {scope}": {
            "scheduling": scheduling,
            "scoring": jp.Scoring(scope=scope),
            "initialization": jp.RewindLearningRate(),
        }
        for when, scheduling in (("one-shot", jp.OneShot()), ("recursive", jp.Recursive(_ROUNDS)))
        for scope in ("global", "local")
    }
    return Comparison(
        "scope",
        "One threshold over all layers against one for each",
        "A global threshold is better than the same sparsity in each layer.",
        of,
        task("lenet"),
        _methods(of, choices),
        (("one-shot, global", "one-shot, local"), ("recursive, global", "recursive, local")),
    )


def _initialization(settings: ClaimsSettings, task: Callable[[str], Classification]) -> Comparison:
    of = settings.comparison("lenet", _ROUNDS + 1, (0.8, 0.9, 0.95, 0.98), 10 * (_ROUNDS + 1))
    late = max(settings.steps // 10, 1)
    kinds = {
        "keep": jp.Finetune(),
        "rewind the learning rate": jp.RewindLearningRate(),
        "rewind to 0": jp.Rewind(),
        f"rewind to {late}": jp.Rewind(late),
        "draw anew": jp.Reinitialize(task("lenet").init_fn),
    }
    choices = {
        name: {"scheduling": jp.Recursive(_ROUNDS), "initialization": kind} for name, kind in kinds.items()
    }
    return Comparison(
        "initialization",
        "Keeping, rewinding, rewinding the learning rate, drawing anew",
        "Rewinding weights or the learning rate is better than keeping both; drawing anew is worse and slower.",
        of,
        task("lenet"),
        _methods(of, choices),
        (
            ("rewind the learning rate", "keep"),
            ("rewind to 0", "keep"),
            (f"rewind to {late}", "rewind to 0"),
            ("rewind to 0", "draw anew"),
        ),
    )


def _structure(settings: ClaimsSettings, task: Callable[[str], Classification]) -> Comparison:
    of = settings.comparison("cnn", _ROUNDS + 1, (0.5, 0.75, 0.9, 0.95), 1)
    made = task("cnn")
    params = jax.eval_shape(made.init_fn, jax.random.key(0))
    groups = jp.find_groups(made.logits, params, made.train.images[:1])
    choices = {
        "single weights": {"scheduling": jp.Gradual()},
        # A sum over a unit grows with its size, so that a threshold over all layers empties the narrow ones.
        "units": {
            "scheduling": jp.Gradual(),
            "structure": jp.Coupled(groups, budget="params"),
            "scoring": jp.Scoring(scope="local"),
        },
    }
    return Comparison(
        "structure",
        "Single weights against units that are removed",
        "At the same number of weights single weights are more accurate; only units make the network faster.",
        of,
        made,
        _methods(of, choices),
        (("single weights", "units"),),
    )


def _methods(settings: CompareSettings, choices: dict[str, dict[str, Any]]) -> list[Method]:
    """The dense network, and a method for each name and the choices of its recipe."""

    def recipe(name: str, of: dict[str, Any]) -> Callable[[Any], jp.Recipe]:
        return lambda sparsity: jp.Recipe(sparsity, name=name, **of)

    return [dense(), *(Method(name, recipe(name, of), settings.sparsities) for name, of in choices.items())]
