"""Schedulings that prune while a network trains: at once, gradually, or in turns."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxprune import schedules, sparse_training
from jaxprune.allocation import check_fraction
from jaxprune.recipes._allocation import allocated
from jaxprune.recipes._choices import Choices
from jaxprune.recipes._scheduling import Rounds, check_rounds, check_single, check_span
from jaxprune.recipes._scoring import Task
from jaxprune.transforms import gradual
from jaxprune.whole_numbers import check_whole


@dataclasses.dataclass(frozen=True)
class OneShot:
    """Prunes once, during the training.

    Weights that are kept keep their values, and training continues. With another initialization than
    `jp.Finetune()`, or if units or layers are removed, there are two trainings, before and after the pruning.

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
            check_rounds(recipe)

    def rounds_of(self, recipe: Choices, steps: int) -> Rounds | None:
        if recipe.continues and not recipe.removes:
            return None
        before = int(self.at * steps)
        if before < 1 and not recipe.continues:
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
        if not _makes_schedules(self.schedule):
            raise TypeError(
                "`schedule` must be a function (final, begin, end, every) -> schedule, such as jp.schedules.cubic, "
                f"linear, cosine or exponential, got {self.schedule!r}."
            )
        check_span(self.begin, self.until)
        check_whole(updates=self.updates)

    def __repr__(self) -> str:
        name = getattr(self.schedule, "__name__", None) or repr(self.schedule)
        return f"Gradual({name}, begin={self.begin!r}, until={self.until!r}, updates={self.updates!r})"

    def check(self, recipe: Choices) -> None:
        check_single(recipe, "prunes a bit at a time within one training")

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
        check_span(self.begin, self.until)
        check_whole(phases=self.phases)

    def check(self, recipe: Choices) -> None:
        check_single(recipe, "lets pruned weights train again within one training")
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


def _makes_schedules(function: Any) -> bool:
    """Whether it can be called with the arguments of `jp.schedules.cubic`, as far as it tells."""
    try:
        inspect.signature(function).bind(0.5, begin=0, end=1, every=1)
    except TypeError:
        return False
    except ValueError:  # some builtins and compiled callables tell nothing of themselves
        return True
    return True


def _gradual(
    recipe: Choices, inner: optax.GradientTransformation, task: Task, make: Callable[[Any], Any]
) -> optax.GradientTransformationExtraArgs:
    """The optimizer that prunes along a schedule."""
    scoring, structure = recipe.scoring, recipe.structure
    final = allocated(scoring.allocation, recipe.sparsity, task.params, task.where)
    return gradual(
        scoring.penalized(inner, structure, task.where),
        make(final) if recipe.is_known else _scaled(make, final),
        score=scoring.of_task(task, structure),
        scope=scoring.scope,
        structure=structure,
        where=task.where,
        key=task.key,
        minimum=scoring.least(recipe.sparsity, task.params, structure, task.where),
    )


def _scaled(make: Callable[[Any], Any], final: Any) -> Callable[[Any], Any]:
    """A schedule to traced sparsities, of a kind whose values are a course times the final one."""
    half = make(0.5)
    if half.name not in _PROPORTIONAL:
        names = ", ".join(_PROPORTIONAL)
        raise ValueError(
            f"`sparsity` must be a known number with the schedule {half.name!r}: only {names} take a traced one."
        )
    return lambda step: jax.tree.map(lambda share: share * (half(step) / 0.5), final)


_PROPORTIONAL = ("one_shot", "linear", "cubic", "cosine")
