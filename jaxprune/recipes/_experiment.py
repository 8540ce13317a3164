"""A recipe of one training as an experiment, with the interface of `jp.imp`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._imp import IMP, Carry
from jaxprune.masking import apply_masks
from jaxprune.masking.units import as_arrays
from jaxprune.params import PyTree, mask_leaves
from jaxprune.recipes._allocation import allocated
from jaxprune.recipes._choices import Choices
from jaxprune.recipes._from_the_start import BeforeTraining
from jaxprune.recipes._scheduling import Rounds
from jaxprune.recipes._scoring import Task
from jaxprune.rewind import replace
from jaxprune.round_history import Round, row_of
from jaxprune.training import Training, impose_masks, round_keys
from jaxprune.transforms import get_masks, has_masks, masked
from jaxprune.transforms._masked import MaskedState, unwrapped
from jaxprune.transforms._masks_in_state import holds_masks, stored_masks


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """What scores need beside the parameters; batches are drawn where none are given."""

    batch_fn: Callable[[jax.Array, jax.Array], Any]
    loss_fn: Any = None
    given: Any = None
    fn: Any = None
    inputs: Any = None

    def task(self, params: PyTree, key: jax.Array, steps: int = 0, where: PyTree | None = None) -> Task:
        """The task of a recipe; without given batches one of `batch_fn`, if a score may need it."""
        batches = self.given
        if batches is None and self.loss_fn is not None:
            batches = [self.batch_fn(key, jnp.zeros([], jnp.int32))]
        return Task(params, steps, key, self.loss_fn, batches, self.fn, self.inputs, where)

    def check(self, recipe: Choices, needs: Iterable[str]) -> None:
        """Raises ValueError if something is missing that the recipe needs."""
        has_batches = self.given is not None or self.loss_fn is not None  # they can be drawn
        given = {
            "loss_fn": self.loss_fn,
            "batches": has_batches or None,
            "fn": self.fn,
            "inputs": self.inputs,
        }
        for name in needs:
            if given.get(name, ()) is None:
                raise ValueError(f"`{name}` must be given to experiment(): {recipe.name} needs it.")

    def score(self, recipe: Choices) -> Callable[[PyTree, jax.Array], PyTree]:
        """The function (params, key) -> scores."""
        return lambda params, key: recipe.scoring.of_task(self.task(params, key), recipe.structure)(
            params, key
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SeveralTrainings(IMP):
    """The experiment of a recipe of several trainings: `jp.imp`, for a plain optimizer in `.tx` too."""

    def init(self, key: jax.Array, state: Any) -> Carry:
        return super().init(key, under_masks(state))

    def train(self, key: jax.Array, state: Any, masks: PyTree, start: int = 0) -> tuple[Any, Round]:
        return super().train(key, under_masks(state), masks, start)


def several_trainings(
    recipe: Choices,
    rounds: Rounds,
    train_step: Callable[[Any, Any], tuple[Any, PyTree]],
    drawn: Drawn,
    params: PyTree | None,
    where: PyTree | None,
    evaluate: Callable[[Any], PyTree] | None,
    every: int | None,
    keep_masks: bool,
) -> SeveralTrainings:
    """The experiment of a recipe; see `Recipe.experiment`."""
    return SeveralTrainings(
        train_step,
        drawn.batch_fn,
        steps=rounds.steps,
        sparsities=_sparsities_of(recipe, rounds, params, where),
        score=drawn.score(recipe),
        scope=recipe.scoring.scope,
        structure=recipe.structure,
        where=where,
        rewind=recipe.initialization,
        evaluate=evaluate,
        every=every,
        keep_masks=keep_masks,
        minimum=_minimum_of(recipe, params, where),
    )


def _sparsities_of(
    recipe: Choices, rounds: Rounds, params: PyTree | None, where: PyTree | None
) -> tuple[Any, ...]:
    """The sparsity after each round, or that of each layer."""
    allocation = recipe.scoring.allocation
    if allocation is None:
        return rounds.after(recipe.sparsity)
    _check_params(recipe, params, "the allocation")
    final = allocated(allocation, recipe.sparsity, params, where)
    leaves, treedef = jax.tree.flatten(final)
    columns = zip(*(rounds.after(share) for share in leaves), strict=True)
    return tuple(jax.tree.unflatten(treedef, column) for column in columns)


def _minimum_of(recipe: Choices, params: PyTree | None, where: PyTree | None) -> int | float:
    """The units that each layer keeps at least."""
    if hasattr(recipe.scoring.minimum, "share"):
        _check_params(recipe, params, repr(recipe.scoring.minimum))
    return recipe.scoring.least(recipe.sparsity, params, recipe.structure, where)


def _check_params(recipe: Choices, params: PyTree | None, for_what: str) -> None:
    if params is None:
        raise ValueError(f"`params` must be given to experiment(): {for_what} of {recipe.name} needs them.")


def under_masks(state: Any) -> Any:
    """The state with the plain optimizer of its `.tx` in `jp.masked`; any other state as it is."""
    if not hasattr(state, "tx") or has_masks(state.opt_state):
        return state
    tx: Any = masked(state.tx)
    masks = stored_masks(state.params, None)
    return replace(state, tx=tx, opt_state=MaskedState(masks, state.opt_state))


@dataclasses.dataclass(frozen=True, eq=False)
class SingleTraining:
    """The experiment of a recipe of one training; made by `Recipe.experiment`."""

    recipe: Choices
    train_step: Callable[[Any, Any], tuple[Any, PyTree]]
    batch_fn: Callable[[jax.Array, jax.Array], Any]
    steps: int
    drawn: Drawn
    where: PyTree | None
    evaluate: Callable[[Any], PyTree] | None
    every: int | None
    keep_masks: bool

    rounds = 0

    def __post_init__(self):
        _ = self._training  # raises for an `every` that is none

    @functools.cached_property
    def _training(self) -> Training:
        return Training(self.train_step, self.batch_fn, self.steps, self.evaluate, self.every)

    @property
    def curve_steps(self) -> tuple[int, ...]:
        """Steps at which the `curve` of a row is evaluated."""
        return self._training.curve_steps

    def run(self, key: jax.Array, state: Any) -> tuple[Any, Round]:
        """The whole training, as one program under `jit`.

        Args:
          key: a `jax.random.key`; batches, scores and random masks follow from it.
          state: any pytree with `.params` and `.opt_state`. Its optimizer stands in `.tx`, plain or in
            `jp.masked`, or is that of `recipe.transform`. A recipe that prunes before training takes any state.

        Returns:
          The trained state and the history: a `Round` of one row. The optimizer in `.tx` has become
          `jp.masked(tx)`, which keeps the pruned weights at zero in further training.

        Raises:
          ValueError: a state without `.tx` whose optimizer is not that of `transform`; as `transform` does.
        """
        batch_key, recipe_key, _ = round_keys(key, 0)
        if isinstance(self.recipe.scheduling, BeforeTraining):
            return self._trained(batch_key, *self._pruned(batch_key, recipe_key, state))
        wrappers = [
            node for node in jax.tree.leaves(state.opt_state, is_leaf=holds_masks) if holds_masks(node)
        ]
        if not all(isinstance(node, MaskedState) for node in wrappers):
            return self._trained(batch_key, state, ())  # an optimizer of the recipe
        if wrappers and not isinstance(state.opt_state, MaskedState):
            raise ValueError(
                f"`state` has jp.masked inside its optimizer, where {self.recipe.name} can't prune: put it outermost, "
                "as in jp.masked(optax.chain(...)), or leave it out."
            )
        if not hasattr(state, "tx"):
            raise ValueError(
                f"`state` must have its optimizer as `.tx`, as flax's TrainState, got {type(state).__name__} without "
                f"it: {self.recipe.name} prunes while it trains. Or make the optimizer with recipe.transform(...)."
            )
        inner = unwrapped(state.tx)
        task = self.drawn.task(state.params, recipe_key, self.steps, self.where)
        tx = self.recipe.transform(inner, **task._asdict())
        opt_state = tx.init(state.params)
        params = apply_masks(state.params, get_masks(opt_state))
        state = replace(state, params=params, tx=tx, opt_state=opt_state)
        state, history = self._trained(batch_key, state, ())
        held: Any = state.opt_state
        penalized = self.recipe.scoring.penalized(inner, self.recipe.structure, self.where)
        masks = get_masks(held)
        return replace(state, tx=masked(penalized), opt_state=MaskedState(masks, held.inner_state)), history

    def _pruned(self, key: jax.Array, recipe_key: jax.Array, state: Any) -> tuple[Any, PyTree]:
        """The state with masks made at initialization, and these masks."""
        state = self._training.match_dtypes(key, under_masks(state))
        task = self.drawn.task(state.params, recipe_key, self.steps, self.where)
        scheduling: Any = self.recipe.scheduling
        masks = as_arrays(mask_leaves(state.params, scheduling.masks(self.recipe, task)), state.params)
        return impose_masks(state, masks), masks

    def _trained(self, key: jax.Array, state: Any, masks: PyTree) -> tuple[Any, Round]:
        """The trained state and the history."""
        start = jnp.zeros([], jnp.int32)
        state = self._training.match_dtypes(key, state)
        state, metrics, _, curve = self._training.run(key, state, masks, start)
        masks = get_masks(state.opt_state) if has_masks(state.opt_state) else masks
        shown = masks if self.keep_masks else ()
        row = row_of(start, state.params, masks, metrics, self._training.last(state, curve), curve, shown)
        return state, jax.tree.map(lambda x: x[None], row)
