"""Initialization: from which values training continues after a pruning.

Each choice is a frozen dataclass with the same three members. `step` is the step at which it takes its snapshot
and at which later rounds start; `take(state)` returns the snapshot; `restore(key, state, snapshot)` returns
the state to continue from. A state is any pytree with `.params` and `.opt_state`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, aligned, flatten_with_paths
from jaxprune.whole_numbers import check_whole


class Initialization(Protocol):
    """What `imp` needs from its `rewind`."""

    @property
    def step(self) -> int: ...

    def take(self, state: Any) -> PyTree: ...

    def restore(self, key: jax.Array, state: Any, snapshot: PyTree) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Rewind:
    """Rewinds the whole state to that of step `step` of the first round.

    Weights, optimizer state, the step of the schedule and every other part of the state (batch statistics, keys)
    return to their values at that step. Training continues from there with the learning rates that the first
    round had from `step` on. `step=0` is the original lottery ticket.

    Args:
      step: the step of the first (dense) round to return to; the learning rate must not have run out there.

    Example:
      >>> import jaxprune as jp
      >>> jp.Rewind(step=100)
      Rewind(step=100)

    References:
      Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2019, arXiv:1912.05671.
    """

    step: int = 0

    def __post_init__(self):
        check_whole(at_least=0, step=self.step)

    def take(self, state: Any) -> PyTree:
        return state

    def restore(self, key: jax.Array, state: Any, snapshot: PyTree) -> Any:
        del key, state
        return snapshot


@dataclasses.dataclass(frozen=True)
class RewindLearningRate:
    """Keeps the weights and rewinds the learning rate to step `step` of the first round.

    The whole optimizer state returns to that step, counts and moments together, because a moment without its
    count would break Adam's bias correction. So does every integer scalar of the state, such as
    `TrainState.step`. Every later round thus trains with the learning rates that the first round had from `step`
    on. Weights, batch statistics and keys are not rewound.

    Args:
      step: the step of the first (dense) round to return to; the learning rate must not have run out there.

    Example:
      >>> import jaxprune as jp
      >>> jp.RewindLearningRate()
      RewindLearningRate(step=0)

    References:
      Renda, Frankle, Carbin, Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020,
      arXiv:2003.02389.
    """

    step: int = 0

    def __post_init__(self):
        check_whole(at_least=0, step=self.step)

    def take(self, state: Any) -> PyTree:
        return state.opt_state, [leaf for leaf in jax.tree.leaves(_rest(state)) if _is_counter(leaf)]

    def restore(self, key: jax.Array, state: Any, snapshot: PyTree) -> Any:
        del key
        opt_state, counters = snapshot
        counters = iter(counters)
        rewound = jax.tree.map(lambda leaf: next(counters) if _is_counter(leaf) else leaf, _rest(state))
        return replace(rewound, params=state.params, opt_state=opt_state)


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Keeps weights and all else as the last round left them; the optimizer continues or restarts.

    With "continue" the optimizer keeps its state, moments and step counts, so that a learning-rate schedule runs
    once over the whole experiment: make it `(rounds + 1) * steps` long, or let it end above 0. A schedule for
    one round has run out after round 0; `imp` raises ValueError if a later round would train nothing.

    With "restart" the optimizer restarts in every round: its moments and step counts, and the integer scalars of
    the state, are those of step 0 of the first round. This equals `RewindLearningRate(step=0)`.

    Args:
      schedule: "continue" or "restart".

    Example:
      >>> import jaxprune as jp
      >>> jp.Finetune()
      Finetune(schedule='continue')

    References:
      Renda, Frankle, Carbin, Comparing Rewinding and Fine-tuning in Neural Network Pruning, 2020,
      arXiv:2003.02389, whose fine-tuning continues at the last learning rate of the dense training.
    """

    schedule: Literal["continue", "restart"] = "continue"

    def __post_init__(self):
        if self.schedule not in ("continue", "restart"):
            raise ValueError(f"`schedule` must be 'continue' or 'restart', got {self.schedule!r}.")

    @property
    def step(self) -> int:
        return 0

    def take(self, state: Any) -> PyTree:
        return RewindLearningRate().take(state) if self.schedule == "restart" else ()

    def restore(self, key: jax.Array, state: Any, snapshot: PyTree) -> Any:
        return RewindLearningRate().restore(key, state, snapshot) if self.schedule == "restart" else state


@dataclasses.dataclass(frozen=True)
class Reinitialize:
    """Draws new values for the kept weights; the rest of the state and the learning-rate schedule return to step 0.

    Args:
      init_fn: key -> parameters (or Linen variables with `params` only); each round passes a new key.

    Example:
      >>> import jax
      >>> import jaxprune as jp
      >>> jp.Reinitialize(lambda key: {"w": jax.random.normal(key, (3, 3))}).step
      0

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis, 2018, arXiv:1803.03635 (the control experiment).
    """

    init_fn: Callable[[jax.Array], PyTree]

    def __post_init__(self):
        if not callable(self.init_fn):
            raise TypeError(f"`init_fn` must map a key to parameters, got {self.init_fn!r}.")

    @property
    def step(self) -> int:
        return 0

    def take(self, state: Any) -> PyTree:
        return state

    def restore(self, key: jax.Array, state: Any, snapshot: PyTree) -> Any:
        return replace(snapshot, params=drawn_like(state.params, self.init_fn(key)))


def drawn_like(params: PyTree, drawn: PyTree) -> PyTree:
    """What an `init_fn` has drawn, in the tree and the dtypes of the parameters (or of their shapes).

    Raises:
      ValueError: trees or shapes that differ.
    """
    paths, old, treedef = flatten_with_paths(params)
    old = [w if hasattr(w, "shape") else jnp.asarray(w) for w in old]
    new = aligned(params, drawn, "init_fn(key)")
    for path, w, value in zip(paths, old, new, strict=True):
        if w.shape != jnp.shape(value):
            raise ValueError(
                f"`init_fn` must return the shapes of the parameters, got {jnp.shape(value)} at {path!r} "
                f"instead of {w.shape}."
            )
    values = [jnp.asarray(value, w.dtype) for value, w in zip(new, old, strict=True)]
    return jax.tree.unflatten(treedef, values)


def replace(state: Any, **fields: Any) -> Any:
    """A copy of a state with some fields replaced: TrainState, NamedTuple, dataclass or any object."""
    for method in ("replace", "_replace"):
        if callable(getattr(state, method, None)):
            return getattr(state, method)(**fields)
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        new = copy.copy(state)
        for name, value in fields.items():
            object.__setattr__(new, name, value)  # past a custom __init__ and frozen=True
        return new
    raise TypeError(
        f"`state` must be a flax TrainState, a NamedTuple or a dataclass with .params and .opt_state, "
        f"got {type(state).__name__}."
    )


def _rest(state: Any) -> Any:
    return replace(state, params=None, opt_state=None)


def _is_counter(leaf: Any) -> bool:
    return jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
