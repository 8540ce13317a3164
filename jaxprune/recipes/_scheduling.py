"""Scheduling: when a recipe prunes. Each choice is a frozen dataclass that makes the optimizer, or the rounds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol

import optax

from jaxprune import schedules, sparse_training
from jaxprune.allocation import check_fraction
from jaxprune.at_init import prune_at_init
from jaxprune.masking import make_masks
from jaxprune.params import PyTree
from jaxprune.recipes._allocation import allocated
from jaxprune.recipes._choices import Choices
from jaxprune.recipes._scoring import Task
from jaxprune.round_sparsity import given_sparsities
from jaxprune.transforms import gradual, masked
from jaxprune.whole_numbers import check_whole


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


@dataclasses.dataclass(frozen=True)
class OneShot:
    """Prunes once, during the training.

    Weights that are kept keep their values, and training continues. With another initialization than
    `jp.Finetune()` there are two trainings, before and after the pruning.

    Args:
      at: fraction of the steps before the pruning, in [0, 1).

    Example:
      >>> import jaxprune as jp
      >>> jp.OneShot(at=0.8)
      OneShot(at=0.8)

    References:
      Han et al., Learning both Weights and Connections for Efficient Neural Networks, 2015, arXiv:1506.02626.
    """

    at: float = 0.5

    needs_key = False

    def __post_init__(self):
        check_fraction("at", self.at)

    def check(self, recipe: Choices) -> None:
        if not recipe.continues:
            _check_rounds(recipe)

    def rounds_of(self, recipe: Choices, steps: int) -> Rounds | None:
        if recipe.continues:
            return None
        before = int(self.at * steps)
        if before < 1:
            raise ValueError(
                f"`steps` leaves none before the pruning, got {steps} with {self}: with {recipe.initialization} there "
                "must be a training to prune after. Use jp.BeforeTraining() to prune at initialization."
            )
        lengths = before, steps - before
        return Rounds(lambda sparsity: (sparsity,), lengths[0] if lengths[0] == lengths[1] else lengths)

    def transform(
        self, recipe: Choices, inner: optax.GradientTransformation, task: Task
    ) -> optax.GradientTransformationExtraArgs:
        step = int(self.at * task.steps)
        return _gradual(recipe, inner, task, lambda final: schedules.one_shot(final, step=step))


@dataclasses.dataclass(frozen=True)
class Gradual:
    """Prunes more and more during one training, along a schedule.

    Args:
      schedule: function (final, begin, end, every) -> schedule, such as `jp.schedules.cubic` or `linear`.
      begin: fraction of the steps before the first pruning, in [0, 1).
      until: fraction of the steps after which nothing more is pruned, in [0, 1).
      updates: number of prunings.

    Example:
      >>> import jaxprune as jp
      >>> jp.Gradual(jp.schedules.linear, updates=10)
      Gradual(linear, begin=0.0, until=0.75, updates=10)

    References:
      Zhu, Gupta, To prune, or not to prune, 2017, arXiv:1710.01878.
    """

    schedule: Callable[..., Any] = schedules.cubic
    begin: float = 0.0
    until: float = 0.75
    updates: int = 50

    needs_key = False

    def __post_init__(self):
        if not callable(self.schedule):
            raise TypeError(
                f"`schedule` must be a function such as jp.schedules.cubic, got {self.schedule!r}."
            )
        _check_span(self.begin, self.until)
        check_whole(updates=self.updates)

    def __repr__(self) -> str:
        name = getattr(self.schedule, "__name__", None) or repr(self.schedule)
        return f"Gradual({name}, begin={self.begin!r}, until={self.until!r}, updates={self.updates!r})"

    def check(self, recipe: Choices) -> None:
        _check_single(recipe, "prunes a bit at a time within one training")

    def rounds_of(self, recipe: Choices, steps: int) -> None:
        return None

    def transform(
        self, recipe: Choices, inner: optax.GradientTransformation, task: Task
    ) -> optax.GradientTransformationExtraArgs:
        begin, end = int(self.begin * task.steps), int(self.until * task.steps)
        every = max((end - begin) // self.updates, 1)
        return _gradual(
            recipe, inner, task, lambda final: self.schedule(final, begin=begin, end=end, every=every)
        )


@dataclasses.dataclass(frozen=True)
class Recursive:
    """Prunes in rounds, each after a training: train, prune, train, prune, ..., train.

    The steps are divided equally among the `rounds + 1` trainings.

    Args:
      rounds: number of prunings.
      spacing: "geometric" prunes the same share of the remaining units in each round, "equal" as many units in
        each, such as 10 % + 10 % + 10 %.
      sparsities: instead of both, the sparsity after each round; the last one must be the recipe's.

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
            object.__setattr__(self, "sparsities", given_sparsities(self.sparsities, None))
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
        _check_rounds(recipe)
        if self.sparsities is not None and recipe.is_known and self.sparsities[-1] != recipe.sparsity:
            raise ValueError(
                f"the last of the `sparsities` must be the recipe's sparsity {recipe.sparsity:g}, got "
                f"{self.sparsities[-1]:g}."
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


@dataclasses.dataclass(frozen=True)
class BeforeTraining:
    """Prunes at initialization; the training is sparse from its first step.

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
        _check_single(recipe, "prunes before the first step")

    def rounds_of(self, recipe: Choices, steps: int) -> None:
        return None

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
            return make_masks(score(params, task.key), final, **choice)
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
        _check_single(recipe, "trains sparse from the start")
        if recipe.structure.fixed_sparsity is not None:
            raise ValueError(
                f"{self} has no meaning with {recipe.structure}: masks move to any unit of a layer, and the pattern "
                "leaves no choice of units."
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


@dataclasses.dataclass(frozen=True)
class Alternating:
    """Sparse and dense phases of one training alternate; the last phase is sparse.

    Args:
      begin: fraction of the steps before the first sparse phase, in [0, 1).
      until: fraction of the steps after which all are sparse, in [0, 1).
      phases: number of sparse and dense phases between the two.

    Example:
      >>> import jaxprune as jp
      >>> jp.Alternating(phases=4)
      Alternating(begin=0.1, until=0.7, phases=4)

    References:
      Peste et al., AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks, 2021,
      arXiv:2106.12379.
    """

    begin: float = 0.1
    until: float = 0.7
    phases: int = 6

    needs_key = False

    def __post_init__(self):
        _check_span(self.begin, self.until)
        check_whole(phases=self.phases)

    def check(self, recipe: Choices) -> None:
        _check_single(recipe, "lets pruned weights train again within one training")
        if recipe.scoring.minimum:
            raise ValueError(f"{self} takes no `minimum`, got {recipe.scoring.minimum!r}.")

    def rounds_of(self, recipe: Choices, steps: int) -> None:
        return None

    def transform(
        self, recipe: Choices, inner: optax.GradientTransformation, task: Task
    ) -> optax.GradientTransformationExtraArgs:
        first = int(self.begin * task.steps)
        every = max(int((self.until - self.begin) * task.steps) // self.phases, 1)
        return sparse_training.ac_dc(
            recipe.scoring.penalized(inner, recipe.structure, task.where),
            allocated(recipe.scoring.allocation, recipe.sparsity, task.params, task.where),
            begin=first,
            end=min(
                first + self.phases * every, task.steps - 1
            ),  # sparse at the end, however short the training
            every=every,
            scope=recipe.scoring.scope,
            score=functools.partial(recipe.scoring.of_task(task, recipe.structure), key=task.key),
            structure=recipe.structure,
            where=task.where,
        )


def _gradual(
    recipe: Choices, inner: optax.GradientTransformation, task: Task, make: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer that prunes along a schedule."""
    scoring, structure = recipe.scoring, recipe.structure
    return gradual(
        scoring.penalized(inner, structure, task.where),
        make(allocated(scoring.allocation, recipe.sparsity, task.params, task.where)),
        score=scoring.of_task(task, structure),
        scope=scoring.scope,
        structure=structure,
        where=task.where,
        key=task.key,
        minimum=scoring.least(recipe.sparsity, task.params, structure, task.where),
    )


def _check_span(begin: float, until: float) -> None:
    check_fraction("begin", begin)
    check_fraction("until", until)
    if until < begin:
        raise ValueError(f"`until` must not be before `begin`, got begin={begin}, until={until}.")


def _check_single(recipe: Choices, why: str) -> None:
    """Raises where values would be rewound or drawn anew between trainings that there are not."""
    if not recipe.continues:
        raise ValueError(
            f"{recipe.initialization} has no meaning with {recipe.scheduling}, which {why}: there is no training to "
            "go back from. Use jp.Recursive or jp.OneShot."
        )


def _check_rounds(recipe: Choices) -> None:
    """Raises for choices that need the optimizer, which between trainings is the user's."""
    if recipe.scoring.group_lasso:
        raise ValueError(
            f"group_lasso={recipe.scoring.group_lasso:g} has no meaning with {recipe.scheduling} and "
            f"{recipe.initialization}: the training steps are your own. Add the penalty to the loss."
        )
