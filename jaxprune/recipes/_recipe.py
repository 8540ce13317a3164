"""A recipe: one answer to each of the four questions of pruning, as four objects that combine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.core import Tracer

from jaxprune.allocation import check_fraction, check_scope
from jaxprune.params import PyTree
from jaxprune.recipes._experiment import (
    Drawn,
    SeveralTrainings,
    SingleTraining,
    several_trainings,
)
from jaxprune.recipes._removal import Removal, check_masks, check_removal, needed, scoring_of
from jaxprune.recipes._scheduling import Scheduling
from jaxprune.recipes._scoring import Scoring, Task
from jaxprune.recipes._shrinking import ShrinkingTrainings, check_left_out, shrinking_trainings
from jaxprune.recipes._while_training import OneShot
from jaxprune.rewind import Finetune, Initialization
from jaxprune.shrinking.states import Variables
from jaxprune.structures import Structure, Unstructured
from jaxprune.whole_numbers import check_whole


@dataclasses.dataclass(frozen=True, repr=False)
class Recipe:
    """A pruning method as its four choices: structure, scoring, scheduling and initialization.

    Every method of `jp.recipes` is such a value, and `dataclasses.replace` makes another method of it. What has no
    meaning together is an error.

    Args:
      sparsity: fraction of the units that is pruned at the end, in [0, 1). It may be traced, so that a sweep
        over sparsities is one program.
      structure: which weights are pruned together: `Unstructured()`, `NM(n, m)`, `Block(shape)`, `Channels()`,
        `Layers()` or `Coupled(groups)`; or what is removed for real, so that arrays become smaller:
        `RemoveUnits(...)` or `RemoveLayers(...)`, whose `budget` says what the sparsity is a share of.
      scoring: which units are pruned first, and across what they are compared: a `Scoring`.
      scheduling: when units are pruned: `OneShot`, `Recursive`, `Gradual`, `BeforeTraining`, `Moving` or
        `Alternating`.
      initialization: from which values training continues after a pruning: `Finetune` keeps them, `Rewind(step)`
        and `RewindLearningRate(step)` go back, `Reinitialize(init_fn)` draws new ones.
      name: what it is called.

    Raises:
      ValueError: choices that have no meaning together; a sparsity that is no fraction.
      TypeError: a choice that is not one of these.

    Example:
      >>> import dataclasses
      >>> import jaxprune as jp
      >>> jp.Recipe(0.9, scheduling=jp.Recursive(rounds=3), initialization=jp.Rewind(step=100))
      recipe, sparsity 0.9
        structure       Unstructured()
        scoring         Scoring(magnitude, scope='global')
        scheduling      Recursive(rounds=3, spacing='geometric')
        initialization  Rewind(step=100)
      >>> dataclasses.replace(jp.recipes.rigl(0.9), structure=jp.Block((4, 4)), name="RigL in blocks")
      RigL in blocks, sparsity 0.9
        structure       Block(shape=(4, 4))
        scoring         Scoring(magnitude, allocation='erk')
        scheduling      Moving(growth='gradient', fraction=0.3, until=0.75, updates=20)
        initialization  Finetune(schedule='continue')
      >>> jp.Recipe(0.5, jp.RemoveUnits(), scheduling=jp.Recursive(rounds=3))     # what runs is printed
      recipe, sparsity 0.5
        structure       RemoveUnits(budget='params')
        scoring         Scoring(l2_scores, scope='global', minimum=1, normalize='mean')
        scheduling      Recursive(rounds=3, spacing='geometric')
        initialization  Finetune(schedule='continue')
    """

    sparsity: Any
    structure: Structure | Removal = Unstructured()
    scoring: Scoring = Scoring()
    scheduling: Scheduling = OneShot()
    initialization: Initialization = Finetune()
    name: str = "recipe"

    def __post_init__(self):
        check_fraction("sparsity", self.sparsity)
        if not isinstance(self.structure, Removal):
            check_scope("global", self.structure)
        if not isinstance(self.scoring, Scoring):
            raise TypeError(f"`scoring` must be jp.Scoring(score, ...), got {self.scoring!r}.")
        if isinstance(self.scheduling, type) or not callable(getattr(self.scheduling, "rounds_of", None)):
            raise TypeError(
                f"`scheduling` must be jp.OneShot(), jp.Recursive(), ..., got {self.scheduling!r}."
            )
        if isinstance(self.initialization, type) or not callable(
            getattr(self.initialization, "restore", None)
        ):
            raise TypeError(
                f"`initialization` must be jp.Finetune(), jp.Rewind(), ..., got {self.initialization!r}."
            )
        if self.is_known:
            object.__setattr__(self, "sparsity", float(self.sparsity))
        self._check_structure()
        self.scheduling.check(self)

    def _check_structure(self) -> None:
        if isinstance(self.structure, Removal):
            check_removal(self)
            return
        if self.is_known:
            self.structure.check_sparsity(self.sparsity, self.name)
        self.structure.check_scope(self.scoring.scope)
        check_masks(self)

    @property
    def is_known(self) -> bool:
        """Whether the sparsity is a known number."""
        return not isinstance(self.sparsity, Tracer)

    @property
    def continues(self) -> bool:
        """Whether training goes on after a pruning as if nothing else had happened."""
        return isinstance(self.initialization, Finetune) and self.initialization.schedule == "continue"

    @property
    def removes(self) -> bool:
        """Whether units or layers are removed for real, so that arrays become smaller."""
        return isinstance(self.structure, Removal)

    def __str__(self) -> str:
        sparsity = f"{float(self.sparsity):g}" if self.is_known else "traced"
        return "\n".join(
            [
                f"{self.name}, sparsity {sparsity}",
                f"  structure       {self.structure}",
                f"  scoring         {scoring_of(self.structure, self.scoring)}",
                f"  scheduling      {self.scheduling}",
                f"  initialization  {self.initialization}",
            ]
        )

    __repr__ = __str__

    def needs(self) -> tuple[str, ...]:
        """What `transform`, or the `experiment` of a removal, must be given beside the parameters."""
        if isinstance(self.structure, Removal):
            return needed(self.structure, self.scoring)
        key = ("key",) if self.scoring.needs_key or self.scheduling.needs_key else ()
        return (*self.scoring.needs, *key)

    def trainings(self, steps: int) -> tuple[int, ...]:
        """The number of steps of each training, of so many in all.

        Raises:
          ValueError: fewer steps than trainings.
        """
        check_whole(steps=steps)
        rounds = self.scheduling.rounds_of(self, steps)
        if rounds is None:
            return (steps,)
        number = len(rounds.after(0.5)) + 1
        return rounds.steps if isinstance(rounds.steps, tuple) else (rounds.steps,) * number

    def transform(
        self,
        inner: optax.GradientTransformation,
        params: PyTree,
        *,
        steps: int,
        key: jax.Array | None = None,
        loss_fn: Callable[[PyTree, Any], jax.Array] | None = None,
        batches: Sequence[Any] | None = None,
        fn: Callable[..., Any] | None = None,
        inputs: Sequence[Any] | None = None,
        where: PyTree | None = None,
    ) -> optax.GradientTransformationExtraArgs:
        """The optimizer that carries out a recipe of one training, with masks made here or with their schedule.

        Nothing else in the training loop changes, and `jp.get_masks(opt_state)` reads the masks. This method also
        runs under `jit`.

        Args:
          inner: any optax optimizer.
          params: the parameters that training starts from.
          steps: number of all training steps.
          key: a `jax.random.key`, for random masks, scores and growth.
          loss_fn: (params, batch) -> loss, for scores from gradients.
          batches: the batches for such scores.
          fn: (params, *inputs) -> outputs, for scores from the network alone.
          inputs: the inputs of `fn`; only the shapes count.
          where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
            one; None for `prunable(params)`.

        Returns:
          An optax transformation with masks in its state.

        Raises:
          ValueError: if an argument that the recipe needs is missing, there is less than one step, or the recipe
            is one of several trainings or removes units or layers.

        Example:
          >>> import jax, jax.numpy as jnp, optax
          >>> import jaxprune as jp
          >>> params = {"w": jax.random.normal(jax.random.key(0), (8, 4))}
          >>> loss_fn = lambda params, x: jnp.mean((x @ params["w"] - 1) ** 2)
          >>> x = jax.random.normal(jax.random.key(1), (16, 8))
          >>> tx = jp.recipes.snip(0.75).transform(
          ...     optax.adam(1e-2), params, steps=100, loss_fn=loss_fn, batches=[x])
          >>> jp.sparsity(params, jp.get_masks(tx.init(params)))
          0.75
        """
        check_whole(steps=steps)
        if self.removes:
            raise ValueError(
                f"{self.name} makes arrays smaller ({self.structure}), and an optimizer can't: call experiment()."
            )
        task = Task(params, steps, key, loss_fn, batches, fn, inputs, where)
        if self.scheduling.rounds_of(self, max(steps, 1000)) is not None:
            raise ValueError(
                f"{self.name} has several trainings ({self.scheduling} and {self.initialization}), and an optimizer "
                "carries out one: call experiment()."
            )
        for name in self.needs():
            if getattr(task, name) is None:
                raise ValueError(f"`{name}` must be given to transform(): {self.name} needs it.")
        return self.scheduling.transform(self, inner, task)

    def experiment(
        self,
        train_step: Callable[..., Any],
        batch_fn: Callable[[jax.Array, jax.Array], Any],
        *,
        steps: int,
        where: PyTree | None = None,
        evaluate: Callable[..., PyTree] | None = None,
        every: int | None = None,
        keep_masks: bool = False,
        params: PyTree | None = None,
        loss_fn: Callable[[PyTree, Any], jax.Array] | None = None,
        batches: Sequence[Any] | None = None,
        fn: Callable[..., Any] | None = None,
        inputs: Sequence[Any] | None = None,
        variables: Variables | None = None,
        folder: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> SeveralTrainings | SingleTraining | ShrinkingTrainings:
        """The whole experiment as a pure function: `state, history = jax.jit(experiment.run)(key, state)`.

        All rounds of a recipe of several trainings are one program, that of `jp.imp`. A recipe of one training
        makes its optimizer (`transform`) of the one in the state. `run` runs under `jit` and `vmap`. Only where
        units or layers are removed it is a loop on the host, that of `jp.shrink_in_rounds`, and is called as it is.

        Args:
          train_step, batch_fn, where, evaluate, every, keep_masks: as for `jp.imp`. `train_step` uses `state.tx`, as
            flax's `TrainState.apply_gradients` does: the recipe wraps it. (Without `.tx`, the optimizer of the
            state must be that of `transform`, or `jp.masked(tx)` for a recipe of several trainings.)
          steps: number of training steps of all trainings together.
          params: the parameters, or their shapes, for a recipe of several trainings with an `allocation`.
          loss_fn, batches, fn, inputs: as for `transform`. Without `batches`, scores from gradients take a batch
            of `batch_fn`, a new one at each pruning between trainings.
          variables, folder, progress: for `jp.RemoveUnits` and `jp.RemoveLayers`, as for `jp.shrink_in_rounds`. With
            these, `fn` and `inputs` are the model and its example inputs, `train_step` is a function
            compact -> train_step (its `make_train_step`), `evaluate` is one of (fn, params), and `loss_fn` takes
            the parameters of `fn`. A `folder` belongs to one key.

        Returns:
          An object with `run(key, state) -> (state, history)`; the history has one row for each training. Where
          units or layers are removed, `history.plan` is what all rounds removed, for the full parameters.

        Raises:
          ValueError: as `jp.imp` and `transform` do; if there are fewer steps than trainings, or an
            `allocation` and no `params`; arguments that have no meaning with the structure.
          TypeError: a training step that is not made for each size, where units or layers are removed.

        Example:
          >>> import jax, jax.numpy as jnp, optax
          >>> import jaxprune as jp
          >>> from flax.training.train_state import TrainState
          >>> def loss_fn(params, batch):
          ...     return jnp.mean((batch @ params["w"] - 1) ** 2)
          >>> def train_step(state, batch):
          ...     loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
          ...     return state.apply_gradients(grads=grads), {"loss": loss}
          >>> def batch_fn(key, step):
          ...     return jax.random.normal(jax.random.fold_in(key, step), (8, 10))
          >>> params = {"w": jnp.linspace(0.1, 1, 20).reshape(10, 2)}
          >>> state = TrainState.create(apply_fn=None, params=params, tx=optax.sgd(0.01))
          >>> for scheduling in (jp.Recursive(rounds=2), jp.Gradual(updates=5), jp.Moving()):
          ...     recipe = jp.Recipe(0.75, scheduling=scheduling, scoring=jp.Scoring(scope="local"))
          ...     experiment = recipe.experiment(train_step, batch_fn, steps=30)
          ...     trained, history = jax.jit(experiment.run)(jax.random.key(0), state)
          ...     print([int(kept) for kept in history.kept])
          [20, 10, 5]
          [5]
          [5]
        """
        check_whole(steps=steps)
        rounds = self.scheduling.rounds_of(self, steps)
        drawn = Drawn(batch_fn, loss_fn, batches, fn, inputs)
        drawn.check(self, self.needs())
        if self.removes:
            check_left_out(self, {"where": where, "every": every, "keep_masks": keep_masks or None})
            return shrinking_trainings(self, rounds, train_step, drawn, evaluate, variables, folder, progress)
        check_left_out(self, {"variables": variables, "folder": folder, "progress": progress or None})
        if rounds is None:
            return SingleTraining(
                self, train_step, batch_fn, steps, drawn, where, evaluate, every, keep_masks
            )
        return several_trainings(self, rounds, train_step, drawn, params, where, evaluate, every, keep_masks)
