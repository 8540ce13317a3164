"""The methods of `jaxprune compare`: named recipes, and combinations of words for the four choices."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax

import jaxprune as jp
from jaxprune import recipes, schedules, scores
from jaxprune.experiments.classification import Classification
from jaxprune.experiments.compare.results import DENSE
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.round_steps import check_rewind

MAKE: dict[str, Callable[[Any], jp.Recipe]] = {
    "imp": recipes.imp,
    "gmp": recipes.gmp,
    "one-shot": recipes.one_shot,
    "lamp": recipes.lamp,
    "minimum-keep": recipes.minimum_keep,
    "rigl": recipes.rigl,
    "set": recipes.set,
    "static": recipes.static,
    "ac-dc": recipes.ac_dc,
    "magnitude-at-init": recipes.magnitude_at_init,
    "snip": recipes.snip,
    "grasp": recipes.grasp,
    "synflow": recipes.synflow,
    "group-lasso": recipes.group_lasso,
}

_SCORES: dict[str, Callable[..., PyTree]] = {
    "magnitude": scores.magnitude,
    "l1": scores.l1_norm,
    "l2": scores.l2_norm,
    "random": scores.random,
    "snip": scores.snip,
    "grasp": scores.grasp,
    "synflow": scores.synflow,
    "taylor": scores.taylor,
    "lamp": scores.lamp,
    "fpgm": scores.fpgm,
}


@dataclasses.dataclass(frozen=True)
class Method:
    """One line of the comparison.

    name: of the line; recipe: sparsity -> recipe; sparsities: those at which the recipe has a meaning.
    """

    name: str
    recipe: Callable[[Any], jp.Recipe]
    sparsities: tuple[float, ...]


def methods(settings: CompareSettings, task: Classification) -> tuple[list[Method], dict[str, str]]:
    """The methods to compare, the dense network first; and name -> why for what is left out.

    Raises:
      ValueError: if a named recipe does not fit the settings, or nothing is left.
    """
    made, left_out = [dense()], {}
    for name in settings.names:
        for sparsity in settings.sparsities:
            _check_named(settings, name, sparsity)
        made.append(Method(name, MAKE[name], settings.sparsities))
    for name, recipe in _grid(settings, task).items():
        found, whys = [], {}
        for sparsity in settings.sparsities:
            try:
                made_of = recipe(sparsity)
                trainings = made_of.trainings(settings.steps)  # raises for too few steps
                if len(trainings) > 1:
                    check_rewind(made_of.initialization, trainings)
                found.append(sparsity)
            except ValueError as error:
                whys[sparsity] = str(error).replace(f" at {name!r}", "")
        if found:
            made.append(Method(name, recipe, tuple(found)))
            left_out |= {f"{name} at {100 * sparsity:g} %": why for sparsity, why in whys.items()}
        else:  # a reason that is none of the sparsity's holds for all
            left_out[name] = min(whys.values(), key=lambda why: why.startswith("`sparsity`"))
    if len(made) == 1:
        name, why = next(iter(left_out.items()))
        raise ValueError(f"no combination of the choices has a meaning; {name}: {why}")
    return made, left_out


def dense() -> Method:
    """The network of which nothing is pruned."""
    return Method(DENSE, lambda sparsity: jp.Recipe(sparsity, scheduling=jp.BeforeTraining()), (0.0,))


def leaves_to_prune(structure: Any, params: PyTree) -> PyTree | None:
    """The leaves to prune; None for the default. Units are not pruned in the output layer: there they are classes."""
    if structure == jp.Unstructured() or isinstance(structure, jp.Coupled):
        return None
    paths, leaves, _ = flatten_with_paths(params)
    exclude = [[path for path in paths if path.endswith("/kernel")][-1]]
    if isinstance(structure, jp.NM):
        exclude = [
            path for path, w in zip(paths, leaves, strict=True) if w.ndim > 1 and w.shape[-2] % structure.m
        ]
    return jp.prunable(params, exclude=tuple(exclude))


def _check_named(settings: CompareSettings, name: str, sparsity: float) -> None:
    try:
        MAKE[name](sparsity).trainings(settings.steps)
    except ValueError as error:
        raise ValueError(
            f"--recipes {name} at --sparsities {sparsity:g} and --steps {settings.steps}: {error}"
        ) from None


def _grid(settings: CompareSettings, task: Classification) -> dict[str, Callable[[Any], jp.Recipe]]:
    """Name -> sparsity -> recipe of every combination. A name has the words of the choices that vary."""
    if not settings.has_grid:
        return {}
    words = (
        settings.structure or ("unstructured",),
        settings.scoring or ("magnitude",),
        settings.scope or (None,),
        settings.scheduling or ("one-shot",),
        settings.initialization or ("keep",),
    )
    structures = {word: _structure(word, task) for word in words[0]}
    vary = [len(of) > 1 for of in words]
    if not any(vary):
        vary[3] = True
    made = {}
    for combination in itertools.product(*words):
        name = " ".join(str(word) for word, is_told in zip(combination, vary, strict=True) if is_told)
        made[name] = _recipe(settings, task, name, structures[combination[0]], *combination[1:])
    return made


def _recipe(
    settings: CompareSettings,
    task: Classification,
    name: str,
    structure: Any,
    score: str,
    scope: str | None,
    scheduling: str,
    initialization: str,
) -> Callable[[Any], jp.Recipe]:
    if scope is None:
        scope = "erk" if scheduling in ("rigl", "set") else "global"
    shared = scope in ("erk", "uniform")

    def make(sparsity: Any) -> jp.Recipe:
        scoring = jp.Scoring(
            _SCORES[score],
            scope="local" if shared else scope,  # pyright: ignore[reportArgumentType]
            allocation=scope if shared else None,
        )
        continued = _initialization(settings, task, initialization)
        return jp.Recipe(sparsity, structure, scoring, _scheduling(settings, scheduling), continued, name)

    return make


def _structure(word: str, task: Classification) -> Any:
    match word:
        case "2:4":
            return jp.NM(2, 4)
        case "blocks":
            return jp.Block((4, 4))
        case "channels":
            return jp.Channels()
        case "units":
            params = jax.eval_shape(task.init_fn, jax.random.key(0))
            return jp.Coupled(jp.find_groups(task.logits, params, task.train.images[:1]), budget="params")
        case "removed":
            return jp.RemoveUnits()
    return jp.Unstructured()


def _scheduling(settings: CompareSettings, word: str) -> Any:
    match word:
        case "recursive":
            return jp.Recursive(settings.rounds)
        case "recursive-equal":
            return jp.Recursive(settings.rounds, "equal")
        case "gradual":
            return jp.Gradual()
        case "gradual-linear":
            return jp.Gradual(schedules.linear)
        case "before-training":
            return jp.BeforeTraining()
        case "rigl":
            return jp.Moving("gradient")
        case "set":
            return jp.Moving("random")
        case "ac-dc":
            return jp.Alternating()
    return jp.OneShot()


def _initialization(settings: CompareSettings, task: Classification, word: str) -> Any:
    match word:
        case "keep-restart":
            return jp.Finetune("restart")
        case "lr":
            return jp.RewindLearningRate(settings.rewind_step)
        case "rewind":
            return jp.Rewind(settings.rewind_step)
        case "new":
            return jp.Reinitialize(task.init_fn)
    return jp.Finetune()
