"""A recipe that removes units or layers as an experiment: rounds of removal, a loop on the host."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from typing import Any

import jax

from jaxprune.params import PyTree
from jaxprune.recipes._choices import Choices
from jaxprune.recipes._experiment import Drawn
from jaxprune.recipes._removal import RankedRemoval, scoring_of
from jaxprune.recipes._scheduling import Rounds
from jaxprune.rewind import Initialization
from jaxprune.round_steps import check_rewind, lengths_of
from jaxprune.shrinking import History, shrink_in_rounds
from jaxprune.shrinking.arguments import check_functions, sparsities_of
from jaxprune.shrinking.compacting import Compact
from jaxprune.shrinking.loop import TrainStep
from jaxprune.shrinking.states import Variables


@dataclasses.dataclass(frozen=True, eq=False)
class ShrinkingTrainings:
    """The experiment of a recipe that removes units or layers; made by `Recipe.experiment`.

    The fields are the arguments of `jp.shrink_in_rounds`. Every size is compiled anew, so `run` is a loop on the host.
    """

    fn: Callable[..., Any]
    inputs: tuple[Any, ...]
    make_train_step: Callable[[Compact], TrainStep]
    batch_fn: Callable[[jax.Array, jax.Array], Any]
    steps: int | tuple[int, ...]
    sparsities: tuple[float, ...]
    planner: Callable[..., Any]
    rewind: Initialization
    evaluate: Callable[[Callable, PyTree], PyTree] | None
    variables: Variables | None
    folder: str | os.PathLike[str] | None
    progress: bool

    curve_steps = ()

    def __post_init__(self):
        check_functions(fn=self.fn, batch_fn=self.batch_fn)
        if not isinstance(self.inputs, tuple | list):
            raise TypeError(
                f"`inputs` must be a tuple of example inputs of `fn`, got {type(self.inputs).__name__}."
            )
        sparsities_of(None, None, self.sparsities)
        check_rewind(self.rewind, lengths_of(self.steps, self.rounds + 1, first_at_least=0))

    @property
    def rounds(self) -> int:
        """Number of removals."""
        return len(self.sparsities)

    def run(self, key: jax.Array, state: Any) -> tuple[Any, History]:
        """All rounds, as `jp.shrink_in_rounds` runs them.

        Args:
          key: a `jax.random.key`; batches, random scores and newly drawn weights follow from it.
          state: any pytree with `.params` and `.opt_state`, at the original size.

        Returns:
          The trained state at the last size, and the history with a row for each training; `history.plan` is what
          all rounds removed.

        Raises:
          ValueError: as `shrink_in_rounds` does; under `jit` or `vmap`.
        """
        shrunk = shrink_in_rounds(
            self.fn,
            state,
            *self.inputs,
            key=key,
            make_train_step=self.make_train_step,
            batch_fn=self.batch_fn,
            steps=self.steps,
            sparsities=self.sparsities,
            planner=self.planner,
            rewind=self.rewind,
            evaluate=self.evaluate,
            variables=self.variables,
            folder=self.folder,
            progress=self.progress,
        )
        return shrunk.state, shrunk.history._replace(plan=shrunk.plan)


def shrinking_trainings(
    recipe: Choices,
    rounds: Rounds | None,
    make_train_step: Callable[[Compact], TrainStep],
    drawn: Drawn,
    evaluate: Callable[[Callable, PyTree], PyTree] | None,
    variables: Variables | None,
    folder: str | os.PathLike[str] | None,
    progress: bool,
) -> ShrinkingTrainings:
    """The experiment of a recipe; see `Recipe.experiment`."""
    drawn.check(recipe, ("fn", "inputs"))
    if rounds is None:
        raise ValueError(f"{recipe.scheduling} has no meaning with {recipe.structure}: it has no rounds.")
    check_functions(train_step=make_train_step, evaluate=evaluate or drawn.fn)
    if not _takes(make_train_step, 1):
        raise TypeError(
            f"`train_step` must be a function compact -> train_step with {recipe.structure}, as the `make_train_step` "
            "of shrink_in_rounds: the step is made anew for each size, at which compact(fn) is a function."
        )
    if evaluate is not None and not _takes(evaluate, 2):
        raise TypeError(
            f"`evaluate` must be a function (fn, params) -> numbers with {recipe.structure}: `fn` is the function, and "
            "`params` are its parameters, at the present size."
        )
    return ShrinkingTrainings(
        fn=drawn.fn,
        inputs=drawn.inputs,
        make_train_step=make_train_step,
        batch_fn=drawn.batch_fn,
        steps=rounds.steps,
        sparsities=rounds.after(recipe.sparsity),
        planner=RankedRemoval(recipe.structure, scoring_of(recipe.structure, recipe.scoring), drawn),
        rewind=recipe.initialization,
        evaluate=evaluate,
        variables=variables,
        folder=folder,
        progress=progress,
    )


def check_left_out(recipe: Choices, arguments: dict[str, Any]) -> None:
    """Raises ValueError for an argument of `experiment` that has no meaning with the structure."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"`{name}` has no meaning with {recipe.structure}: {_LEFT_OUT[name]}.")


_LEFT_OUT = {
    "where": "which units stay is said by its `exclude`",
    "every": "`evaluate` is called at the end of each training",
    "keep_masks": "there are no masks, and `history.plan` says what was removed",
    "variables": "masks are made of `state.params`. It is for jp.RemoveUnits() and jp.RemoveLayers()",
    "folder": "`run` is one program. It is for jp.RemoveUnits() and jp.RemoveLayers()",
    "progress": "`run` is one program. It is for jp.RemoveUnits() and jp.RemoveLayers()",
}


def _takes(function: Callable[..., Any], number: int) -> bool:
    """Whether a function can be called with so many positional arguments, as far as it tells."""
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        return False
    except ValueError:  # some builtins and compiled callables tell nothing of themselves
        return True
    return True
