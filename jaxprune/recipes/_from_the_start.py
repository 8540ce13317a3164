"""Schedulings that train sparse from the first step: pruned at initialization, or with masks that move."""

from __future__ import annotations

import dataclasses
from typing import Literal

import optax

from jaxprune import sparse_training
from jaxprune.allocation import check_fraction
from jaxprune.at_init import prune_at_init
from jaxprune.masking import Criterion, make_masks
from jaxprune.params import PyTree
from jaxprune.recipes._allocation import allocated
from jaxprune.recipes._choices import Choices
from jaxprune.recipes._scheduling import Rounds, check_continues, check_single
from jaxprune.recipes._scoring import Task
from jaxprune.structures import Layers
from jaxprune.transforms import masked
from jaxprune.whole_numbers import check_whole


@dataclasses.dataclass(frozen=True)
class BeforeTraining:
    """Prunes at initialization; the training is sparse from its first step.

    A recipe that removes units or layers prunes once, and then has two trainings, of which the first has no steps.

    Args:
      rounds: number of prunings, each with new scores of the masked parameters.

    Example:
      >>> import jaxprune as jp
      >>> jp.BeforeTraining(rounds=100)
      BeforeTraining(rounds=100)

    References:
      Lee, Ajanthan, Torr, SNIP: Single-shot Network Pruning based on Connection Sensitivity, 2018,
      arXiv:1810.02340.
    """

    rounds: int = 1

    needs_key = False

    def __post_init__(self):
        check_whole(rounds=self.rounds)

    def check(self, recipe: Choices) -> None:
        check_continues(recipe, "prunes before the first step")
        if recipe.removes and self.rounds > 1:
            raise ValueError(
                f"{self} has no meaning with {recipe.structure}, which is removed at once before the training: use "
                "jp.BeforeTraining(), or jp.Recursive with training in between."
            )

    def rounds_of(self, recipe: Choices, steps: int) -> Rounds | None:
        return Rounds(lambda sparsity: (sparsity,), (0, steps)) if recipe.removes else None

    def transform(
        self, recipe: Choices, inner: optax.GradientTransformation, task: Task
    ) -> optax.GradientTransformationExtraArgs:
        return masked(recipe.scoring.penalized(inner, recipe.structure, task.where), self.masks(recipe, task))

    def masks(self, recipe: Choices, task: Task) -> PyTree:
        """The masks of the whole training."""
        scoring, params, where = recipe.scoring, task.params, task.where
        score = scoring.of_task(task, recipe.structure)
        final = allocated(scoring.allocation, recipe.sparsity, params, where)
        least = scoring.least(recipe.sparsity, params, recipe.structure, where)
        choice = {"scope": scoring.scope, "structure": recipe.structure, "where": where, "minimum": least}
        if self.rounds == 1:
            scores = score(params, task.key)
            Criterion(**choice).units(params).of_scores(scores)  # raises for another tree
            return make_masks(scores, final, **choice)
        return prune_at_init(score, params, final, self.rounds, key=task.key, **choice)


@dataclasses.dataclass(frozen=True)
class Moving:
    """Trains sparse from random masks; at each move every layer drops some weights and grows as many others.

    The scoring says what is dropped, `growth` what is grown. The fraction that moves decays along a cosine.

    Args:
      growth: "gradient" grows where `|dL/dw|` is largest (RigL), "random" anywhere (SET).
      fraction: fraction of the kept weights that is dropped and regrown at first.
      until: fraction of the steps after which the masks no longer move, in [0, 1).
      updates: number of moves until then.

    Example:
      >>> import jaxprune as jp
      >>> jp.Moving(growth="random")
      Moving(growth='random', fraction=0.3, until=0.75, updates=20)

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019, arXiv:1911.11134.
      Mocanu et al., Scalable training of artificial neural networks with adaptive sparse connectivity inspired
      by network science, 2017, arXiv:1707.04780.
    """

    growth: Literal["gradient", "random"] = "gradient"
    fraction: float = 0.3
    until: float = 0.75
    updates: int = 20

    needs_key = True

    def __post_init__(self):
        if self.growth not in ("gradient", "random"):
            raise ValueError(f"`growth` must be 'gradient' or 'random', got {self.growth!r}.")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"`fraction` must be in [0, 1], got {self.fraction!r}.")
        check_fraction("until", self.until)
        check_whole(updates=self.updates)

    def check(self, recipe: Choices) -> None:
        check_single(recipe, "trains sparse from the start")
        if recipe.structure.fixed_sparsity is not None:
            raise ValueError(
                f"{self} has no meaning with {recipe.structure}: masks move to any unit of a layer, and the pattern "
                "leaves no choice of units."
            )
        if isinstance(recipe.structure, Layers):
            raise ValueError(
                f"{self} has no meaning with {recipe.structure}: masks move within a layer, which is a single unit."
            )
        if recipe.scoring.scope == "global" and recipe.scoring.allocation is None:
            raise ValueError(
                f"{self} has no meaning with {recipe.scoring}: each layer keeps its number of weights. Pass "
                "scope='local' or an `allocation` to jp.Scoring."
            )
        if recipe.scoring.minimum:
            raise ValueError(
                f"{self} has no meaning with minimum={recipe.scoring.minimum!r}: the allocation alone says what each "
                "layer keeps."
            )

    def rounds_of(self, recipe: Choices, steps: int) -> None:
        return None

    def transform(
        self, recipe: Choices, inner: optax.GradientTransformation, task: Task
    ) -> optax.GradientTransformationExtraArgs:
        end = int(self.until * task.steps)
        wrap = sparse_training.rigl if self.growth == "gradient" else sparse_training.set
        return wrap(
            recipe.scoring.penalized(inner, recipe.structure, task.where),
            allocated(recipe.scoring.allocation, recipe.sparsity, task.params, task.where),
            end=end,
            every=max(end // self.updates, 1),
            fraction=self.fraction,
            score=recipe.scoring.of_task(task, recipe.structure),
            structure=recipe.structure,
            where=task.where,
            key=task.key,
        )
