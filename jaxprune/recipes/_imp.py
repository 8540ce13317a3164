"""Iterative magnitude pruning with rewinding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jaxprune._imp import IMP
from jaxprune._imp import imp as imp_of_steps
from jaxprune.allocation import Scope
from jaxprune.params import PyTree
from jaxprune.recipes._recipe import (
    Allocation,
    allocated,
    check_allocation,
    check_final,
    compared_over,
    four_choices,
)
from jaxprune.rewind import Initialization, Rewind
from jaxprune.structures import Structure, Unstructured
from jaxprune.whole_numbers import check_whole


@dataclasses.dataclass(frozen=True)
class IMPRecipe:
    """A recipe of several trainings: it makes an experiment, not an optimizer. Made by `jp.recipes.imp`."""

    sparsity: float
    rounds: int
    scope: Scope
    structure: Structure
    rewind: Initialization
    allocation: Allocation = None

    name = "IMP"

    def __post_init__(self):
        check_final(self.sparsity, self.structure, self.name)
        check_whole(rounds=self.rounds)
        check_allocation(self.allocation)

    @property
    def rate(self) -> float:
        """Fraction of the remaining weights that a round prunes: `1 - (1 - sparsity)^(1 / rounds)`."""
        return 1 - (1 - self.sparsity) ** (1 / self.rounds)

    @property
    def scoring(self) -> str:
        return f"magnitude, {compared_over(self.scope, self.allocation)}"

    @property
    def scheduling(self) -> str:
        return f"geometric: {self.rounds} rounds that each prune {self.rate:.3g} of the remaining weights"

    @property
    def initialization(self) -> str:
        return repr(self.rewind)

    def __str__(self) -> str:
        return four_choices(self)

    __repr__ = __str__

    def check_steps(self, steps: int) -> None:
        """Raises ValueError if there are fewer steps than trainings."""
        check_whole(steps=steps)
        if steps <= self.rounds:
            raise ValueError(
                f"`steps` must be at least {self.rounds + 1}, one for each training, got {steps}."
            )

    def experiment(
        self,
        train_step: Callable[[Any, Any], tuple[Any, PyTree]],
        batch_fn: Callable[[jax.Array, jax.Array], Any],
        *,
        steps: int,
        where: PyTree | None = None,
        evaluate: Callable[[Any], PyTree] | None = None,
        keep_masks: bool = False,
        params: PyTree | None = None,
    ) -> IMP:
        """The `jp.imp` of this recipe.

        Args:
          train_step, batch_fn, where, evaluate, keep_masks: as for `jp.imp`.
          steps: number of training steps of all `rounds + 1` trainings together; each has
            `steps // (rounds + 1)`.
          params: the parameters, or their shapes, for a recipe with an `allocation`.

        Returns:
          An `IMP`; `run(key, state)` runs the whole experiment.

        Raises:
          ValueError: as `jp.imp` does; if there are fewer steps than trainings, or an `allocation` and no
            `params`.
        """
        self.check_steps(steps)
        rate: Any = self.rate
        if self.allocation is not None:
            if params is None:
                raise ValueError("`params` must be given to experiment(): the allocation of IMP needs them.")
            shares = allocated(self.allocation, self.sparsity, params, where)
            rate = jax.tree.map(lambda share: 1 - (1 - float(share)) ** (1 / self.rounds), shares)
        return imp_of_steps(
            train_step,
            batch_fn,
            steps=steps // (self.rounds + 1),
            rounds=self.rounds,
            rate=rate,
            scope=self.scope,
            structure=self.structure,
            where=where,
            rewind=self.rewind,
            evaluate=evaluate,
            keep_masks=keep_masks,
        )


def imp(
    sparsity: float,
    *,
    rounds: int = 4,
    scope: Scope = "global",
    structure: Structure = Unstructured(),
    rewind: Initialization = Rewind(),
    allocation: Allocation = None,
) -> IMPRecipe:
    """Iterative magnitude pruning: train, prune the smallest of the remaining weights, rewind, repeat.

    Args:
      sparsity: sparsity after the last round, in [0, 1).
      rounds: number of prunings; there are `rounds + 1` trainings.
      scope, structure, rewind: as for `jp.imp`.
      allocation: a sparsity for each layer instead of `scope`: a tree whose total is `sparsity`, a function
        (params, sparsity, where=) -> tree such as `jp.allocate.erk`, or its name, "erk" or "uniform".

    Returns:
      A recipe whose `experiment` returns the `IMP` of `jp.imp`.

    Example:
      >>> import jaxprune as jp
      >>> jp.recipes.imp(0.9375)
      IMP, sparsity 0.9375
        structure       Unstructured()
        scoring         magnitude, global
        scheduling      geometric: 4 rounds that each prune 0.5 of the remaining weights
        initialization  Rewind(step=0)

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635.
    """
    return IMPRecipe(sparsity, rounds, scope, structure, rewind, allocation)
