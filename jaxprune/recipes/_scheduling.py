"""Scheduling: when a recipe prunes. Each choice is a frozen dataclass that makes the optimizer, or the rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import optax

from jaxprune.allocation import check_fraction
from jaxprune.recipes._choices import Choices
from jaxprune.recipes._scoring import Task


class Scheduling(Protocol):
    """What a recipe needs from its `scheduling`."""

    @property
    def needs_key(self) -> bool:
        """Whether it draws random numbers."""
        ...

    def check(self, recipe: Choices) -> None:
        """Raises ValueError, in one sentence, for other choices that have no meaning with this one."""
        ...

    def rounds_of(self, recipe: Choices, steps: int) -> Rounds | None:
        """The prunings between trainings; None where a single training does.

        Raises:
          ValueError: fewer steps than trainings.
        """
        ...

    def transform(
        self, recipe: Choices, inner: optax.GradientTransformation, task: Task
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that carries out a single training."""
        ...


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Prunings with trainings around them: shares of the final sparsity and steps of each training.

    Args:
      after: sparsity after each round as a function of the final one.
      steps: number of steps of each training, one more than rounds.
    """

    after: Callable[[Any], tuple[Any, ...]]
    steps: int | tuple[int, ...]


def check_span(begin: float, until: float) -> None:
    check_fraction("begin", begin)
    check_fraction("until", until)
    if until < begin:
        raise ValueError(f"`until` must not be before `begin`, got begin={begin}, until={until}.")


def check_single(recipe: Choices, why: str) -> None:
    """Raises where values would be rewound, or sizes would change, between trainings that there are not."""
    if recipe.removes:
        raise ValueError(
            f"{recipe.scheduling} has no meaning with {recipe.structure}, because it {why}: sizes change only between "
            "trainings. Use jp.Recursive or jp.OneShot."
        )
    check_continues(recipe, why)


def check_continues(recipe: Choices, why: str) -> None:
    """Raises where values would be rewound or drawn anew without a training before the pruning."""
    if not recipe.continues:
        raise ValueError(
            f"{recipe.initialization} has no meaning with {recipe.scheduling}, which {why}: there is no training to "
            "go back from. Use jp.Recursive or jp.OneShot."
        )


def check_rounds(recipe: Choices) -> None:
    """Raises for choices that need the optimizer, which between trainings is the user's."""
    if recipe.scoring.group_lasso:
        raise ValueError(
            f"group_lasso={recipe.scoring.group_lasso:g} has no meaning with {recipe.scheduling} and "
            f"{recipe.initialization}: the training steps are your own. Add the penalty to the loss."
        )
