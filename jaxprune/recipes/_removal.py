"""Recipes that remove units or layers for real: what their scoring means, and which choices have no meaning."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from jaxprune.params import PyTree
from jaxprune.recipes._choices import Choices
from jaxprune.recipes._experiment import Drawn
from jaxprune.recipes._scheduling import check_rounds
from jaxprune.recipes._scoring import Scoring
from jaxprune.recipes._unit_scores import (
    UNITS,
    call_unit_score,
    check_unit_score,
    is_of_units,
    needs_of,
)
from jaxprune.scores import l2_norm, magnitude
from jaxprune.scores._scorer import first_of, parameters_of
from jaxprune.shrinking import RemoveLayers, RemoveUnits, Stage
from jaxprune.structures import Unstructured
from jaxprune.surgery import branch_norms, l2_scores

Removal = RemoveUnits | RemoveLayers  # structures that make arrays smaller instead of masks


def scoring_of(structure: Any, scoring: Scoring) -> Scoring:
    """The scoring that ranks the units of a structure: for masks as it is, for a removal with its defaults.

    In place of the magnitude of weights a removal takes the L2 norm of units, divided by the mean of their group if
    nothing else is said, or that of layers. A group keeps at least one unit.
    """
    if isinstance(structure, RemoveLayers) and scoring.score is magnitude:
        return dataclasses.replace(scoring, score=branch_norms)
    if isinstance(structure, RemoveUnits):
        if scoring.score is magnitude:
            scoring = dataclasses.replace(scoring, score=l2_scores, normalize=scoring.normalize or "mean")
        return dataclasses.replace(scoring, minimum=scoring.minimum or 1)
    return scoring


def needed(structure: Removal, scoring: Scoring) -> tuple[str, ...]:
    """What the score of a removal must be given of an experiment."""
    score = scoring_of(structure, scoring).score
    return needs_of(score) if is_of_units(score, _units(structure)) else scoring.needs


def check_masks(recipe: Choices) -> None:
    """Raises ValueError where masks are made by a score of what is removed for real."""
    if first_of(recipe.scoring.score) in UNITS:
        raise ValueError(
            f"{recipe.scoring.name} has no meaning with {recipe.structure}, whose masks come from scores of weights, "
            "such as jp.scores.magnitude: it ranks what jp.RemoveUnits() or jp.RemoveLayers() remove."
        )


def check_removal(recipe: Choices) -> None:
    """Raises ValueError for choices that have no meaning where units or layers are removed."""
    scoring, structure = recipe.scoring, recipe.structure
    if not recipe.is_known:
        raise ValueError(f"`sparsity` must be a known number with {structure}: sizes follow from it.")
    for name in ("score", "scope", "minimum", "normalize"):
        if getattr(structure, name, None) != getattr(type(structure), name, None):
            raise ValueError(
                f"`{name}` of {structure} has no meaning in a recipe, whose scoring says it: pass it to jp.Scoring."
            )
    if scoring.allocation is not None:
        raise ValueError(
            f"`allocation` has no meaning with {structure}: its units do not lie in one leaf. Pass `scope`, or "
            "`exclude` to the structure."
        )
    check_rounds(recipe)
    meant = scoring_of(structure, scoring)
    if isinstance(structure, RemoveLayers):
        _check_layers(meant, structure)
    else:
        _check_units(meant, structure)
    if is_of_units(meant.score, _units(structure)):
        check_unit_score(meant.score)


def _check_layers(scoring: Scoring, structure: RemoveLayers) -> None:
    for name, without in (("minimum", 0), ("normalize", None)):
        value = getattr(scoring, name)
        if value != without:
            raise ValueError(f"{name}={value!r} has no meaning with {structure}: a layer is one unit, alone.")
    if scoring.scope == "local":
        raise ValueError(f"`scope` must be 'global' for {structure}: layers are ranked against each other.")
    if not is_of_units(scoring.score, "branches"):
        raise ValueError(
            f"{scoring.name} has no meaning with {structure}: pass a score of (branches, params), such as "
            "jp.surgery.branch_norms or block_influence."
        )


def _check_units(scoring: Scoring, structure: RemoveUnits) -> None:
    if scoring.normalize not in (None, "mean", "max"):
        raise ValueError(
            f"normalize={scoring.normalize!r} has no meaning with {structure}: scores of units are divided by the "
            "'mean' or the 'max' of their group."
        )
    if not isinstance(scoring.minimum, numbers.Integral):
        raise ValueError(
            f"minimum={scoring.minimum!r} has no meaning with {structure}: pass a whole number of units, which each "
            "group keeps in all rounds."
        )
    score = scoring.score
    cuts = parameters_of(score).get("structure")
    # Units of one leaf say nothing of those that lie across leaves.
    of_leaves = score is l2_norm or (cuts is not None and not isinstance(cuts.default, Unstructured))
    if of_leaves or first_of(score) == "branches":
        raise ValueError(
            f"{scoring.name} has no meaning with {structure}: pass a score of (groups, params), such as "
            "jp.surgery.l2_scores or fpgm_scores, or one of single weights, which is summed over a unit."
        )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RankedRemoval:
    """The planner of a recipe: a removal that is ranked by the recipe's scoring.

    Args:
      structure: what is removed.
      scoring: from `scoring_of`.
      drawn: what the score needs beside the parameters, at the original size.
    """

    structure: Removal
    scoring: Scoring
    drawn: Drawn

    def __repr__(self) -> str:
        return f"{self.structure} by {self.scoring}"

    def check(self, stage: Stage) -> None:
        """Raises ValueError if so much can't be removed, whatever the scores."""
        planner = self._planner(stage)
        if isinstance(planner, RemoveUnits):
            planner.check(stage)

    def __call__(self, stage: Stage) -> Any:
        return self._planner(stage)(stage)

    def _planner(self, stage: Stage) -> Removal:
        def score(units: Any, params: PyTree) -> Any:
            task = self.drawn.task(params, stage.key)
            loss_fn = None if task.loss_fn is None else stage.compact(task.loss_fn)
            task = task._replace(loss_fn=loss_fn, fn=stage.fn, inputs=stage.inputs)
            if is_of_units(self.scoring.score, _units(self.structure)):
                return call_unit_score(self.scoring.score, units, params, task)
            weights = dataclasses.replace(self.scoring, normalize=None)  # the planner divides, by group
            return weights.of_task(task, Unstructured())(params, stage.key)

        if isinstance(self.structure, RemoveLayers):
            return dataclasses.replace(self.structure, score=score)
        scoring: Any = self.scoring
        return dataclasses.replace(
            self.structure,
            score=score,
            scope=scoring.scope,
            minimum=int(scoring.minimum),
            normalize=scoring.normalize,
        )


def _units(structure: Removal) -> str:
    """The name of the first argument of a score of units."""
    return "branches" if isinstance(structure, RemoveLayers) else "groups"
