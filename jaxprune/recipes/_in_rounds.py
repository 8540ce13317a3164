"""The scheduling of rounds: train, prune, train, prune, ..., train."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import optax
from jax.core import Tracer

from jaxprune.allocation import check_fraction
from jaxprune.recipes._choices import Choices
from jaxprune.recipes._scheduling import Rounds, check_rounds
from jaxprune.recipes._scoring import Task
from jaxprune.round_sparsity import given_sparsities
from jaxprune.whole_numbers import check_whole


@dataclasses.dataclass(frozen=True)
class Recursive:
    """Prunes in rounds, each after a training: train, prune, train, prune, ..., train.

    The steps are divided equally among the `rounds + 1` trainings.

    Args:
      rounds: number of prunings.
      spacing: "geometric" prunes the same share of the remaining units in each round, "equal" as many units in
        each, such as 10 % + 10 % + 10 %.
      sparsities: instead of both, the sparsity after each round; the last one must be the recipe's. Or, with
        `rounds`, a schedule of the number of rounds, as for `jp.imp`.

    Example:
      >>> import jaxprune as jp
      >>> jp.Recursive(rounds=9, spacing="equal")
      Recursive(rounds=9, spacing='equal')
      >>> jp.Recursive(sparsities=(0.5, 0.8, 0.9))
      Recursive(sparsities=(0.5, 0.8, 0.9))

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635.
    """

    rounds: int = 4
    spacing: Literal["geometric", "equal"] = "geometric"
    sparsities: tuple[float, ...] | None = None

    needs_key = False

    def __post_init__(self):
        if self.sparsities is not None:
            rounds = self.rounds if callable(self.sparsities) else None
            object.__setattr__(self, "sparsities", given_sparsities(self.sparsities, rounds))
            for sparsity in self.sparsities:
                check_fraction("sparsities", sparsity)
            object.__setattr__(self, "rounds", len(self.sparsities))
        check_whole(rounds=self.rounds)
        if self.spacing not in ("geometric", "equal"):
            raise ValueError(f"`spacing` must be 'geometric' or 'equal', got {self.spacing!r}.")

    def __repr__(self) -> str:
        if self.sparsities is not None:
            return f"Recursive(sparsities={self.sparsities!r})"
        return f"Recursive(rounds={self.rounds!r}, spacing={self.spacing!r})"

    def check(self, recipe: Choices) -> None:
        check_rounds(recipe)
        if self.sparsities is None:
            return
        last, is_known = self.sparsities[-1], not isinstance(self.sparsities[-1], Tracer)
        # The rounding of 0.1 + 0.2, or of a float32, makes no other sparsity.
        same = (
            abs(last - recipe.sparsity) < 1e-6
            if is_known and recipe.is_known
            else is_known == recipe.is_known
        )
        if not same:
            raise ValueError(
                f"the last of the `sparsities` must be the recipe's sparsity {_text(recipe.sparsity)}, got "
                f"{_text(last)}."
            )

    def rounds_of(self, recipe: Choices, steps: int) -> Rounds:
        check_whole(steps=steps)
        if steps <= self.rounds:
            raise ValueError(
                f"`steps` must be at least {self.rounds + 1}, one for each training, got {steps}."
            )
        return Rounds(self.after, steps // (self.rounds + 1))

    def after(self, sparsity: Any) -> tuple[Any, ...]:
        """The sparsity after each round."""
        if self.sparsities is not None:
            return self.sparsities
        inner = [number / self.rounds for number in range(1, self.rounds)]
        if self.spacing == "equal":
            return (*(sparsity * part for part in inner), sparsity)
        return (*(1 - (1 - sparsity) ** part for part in inner), sparsity)

    def transform(
        self, recipe: Choices, inner: optax.GradientTransformation, task: Task
    ) -> optax.GradientTransformationExtraArgs:
        raise NotImplementedError  # the recipe never asks


def _text(sparsity: Any) -> str:
    return "(traced)" if isinstance(sparsity, Tracer) else f"{float(sparsity):g}"
