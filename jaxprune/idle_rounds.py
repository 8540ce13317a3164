"""Finds rounds in which no weight can change before they run, as when the learning rate has reached 0.

A training step is traced, and only values that depend on nothing but the step counts of the state are computed:
the learning rates. For all other values two facts are followed: whether the value is certainly zero, and whether
it certainly equals a parameter before the step. A round is idle if none of its steps can change a weight. If
that is not certain, the round counts as training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.jaxprs.hints import Hint, Known, Value, both, constant, evaluate, negated
from jaxprune.params import PyTree
from jaxprune.training import Training
from jaxprune.transforms._masks_in_state import holds_masks

Counts = tuple[Any, ...]


class Clock:
    """The step counts of a state: how a training step advances them, and whether it can change a weight."""

    def __init__(self, training: Training, key: jax.Array, state: Any, chosen: list[int]):
        def step(state: Any, key: jax.Array, number: jax.Array) -> Any:
            return training.step(state, key, number)[0]

        self.leaves, treedef = jax.tree.flatten(state)
        self.step = _Program(step, state, key, jnp.zeros([], jnp.int32))
        places = jax.tree.unflatten(treedef, range(len(self.leaves)))
        nodes = jax.tree.leaves(places, is_leaf=holds_masks)
        self.masks = jax.tree.leaves([node.masks for node in nodes if holds_masks(node)])
        self.params = jax.tree.leaves(places.params)
        self.prunable = [self.params[i] for i in chosen]
        self.counters = [i for i, leaf in enumerate(self.leaves) if _is_counter(leaf)]
        while True:  # until each of them depends on nothing but them
            found, self.moves = self._look()
            if found == self.counters:
                break
            self.counters = found

    @property
    def is_telling(self) -> bool:
        """Whether the counts determine if a step trains."""
        return not isinstance(self.moves, bool)

    def start(self) -> Counts:
        """The present counts; 0 if they are traced."""
        values = (self.leaves[i] for i in self.counters)
        return tuple(np.asarray(0 if isinstance(x, Tracer) else x, x.dtype) for x in values)

    def values(self, counts: Counts, params_are_same: bool = False) -> list[Value]:
        """What is known of the leaves of a state with these counts."""
        known: list[Value] = [Hint() for _ in self.leaves]
        for i in self.masks:
            known[i] = Known(np.True_)  # a kept weight's
        for i in self.params if params_are_same else ():
            known[i] = Hint(same=(i, True))
        for i, count in zip(self.counters, counts, strict=True):
            known[i] = Known(count)
        return known

    def advance(self, counts: Counts, number: Any) -> tuple[list[Value], Any]:
        """What is known of the state after step `number`, and whether a weight can have changed."""
        before = self.values(counts, params_are_same=True)
        after = self.step([*before, Hint(), Known(number)])
        stands: Any = True
        for i in self.prunable:
            value = after[i]
            same = value.same if isinstance(value, Hint) else None
            stands = both(stands, same[1] if same and same[0] == i else False)
        return after, negated(stands)

    def _look(self) -> tuple[list[int], Any]:
        seen: list[Any] = []

        def look(counts: Counts, number: jax.Array) -> None:
            after, moves = self.advance(counts, number)
            seen.append(([i for i in self.counters if isinstance(after[i], Known)], moves))

        jax.eval_shape(look, self.start(), jnp.zeros([], jnp.int32))
        return seen[0]

    @functools.cached_property
    def loop(self) -> Callable[[Any, Any, Any], Any]:
        """(start, stop, (counts, whether a step trained)) -> the last such pair; compiled.

        Call it outside of `ensure_compile_time_eval`: inside, each operation on known numbers would be compiled
        and run separately while the loop is traced.
        """

        def body(number: jax.Array, carry: tuple[Counts, jax.Array]) -> tuple[Counts, jax.Array]:
            after, moves = self.advance(carry[0], number)
            new = tuple(after[i].value for i in self.counters)  # pyright: ignore[reportAttributeAccessIssue]
            new = tuple(jnp.asarray(x, old.dtype) for x, old in zip(new, carry[0], strict=True))
            return new, carry[1] | moves

        number = jax.ShapeDtypeStruct((), np.int32)
        carry = jax.eval_shape(lambda *args: args, self.start(), np.zeros([], bool))
        looped = jax.jit(lambda low, high, carry: jax.lax.fori_loop(low, high, body, carry))
        return looped.lower(number, number, carry).compile()

    def run(self, counts: Counts, start: int, stop: int) -> tuple[Counts, bool]:
        """The counts after steps start, ..., stop - 1, and whether one of these steps can train."""
        counts, trains = self.loop(np.int32(start), np.int32(stop), (counts, np.zeros([], bool)))
        return tuple(map(np.asarray, counts)), bool(trains)


def idle_round(
    training: Training, key: jax.Array, state: Any, chosen: list[int], rewind: Any, lengths: Sequence[int]
) -> int | None:
    """The first round after the dense one in which no weight to prune can change; None if there is none.

    Args:
      training: the training of a round.
      key: the key of the experiment; only its type counts.
      state: a state from `match_dtypes`, before the first step. Traced step counts are taken as 0.
      chosen: positions of the parameters to prune.
      rewind: the `rewind` of the experiment.
      lengths: number of steps of each training, the dense one first, which may have none.

    Returns:
      The number of the round; None also if the dense training itself changes nothing.
    """
    if len(lengths) < 2:
        return None
    clock = Clock(training, key, state, chosen)
    if not clock.is_telling:
        return None
    restore = _Program(lambda key, s, base: rewind.restore(key, s, rewind.take(base)), key, state, state)
    _ = clock.loop  # compiled here, see there
    with jax.ensure_compile_time_eval():
        snapshot, early = clock.run(clock.start(), 0, rewind.step)
        end, late = clock.run(snapshot, rewind.step, lengths[0])
        if lengths[0] and not (early or late):
            return None
        before = None
        for number, steps in enumerate(lengths[1:], 1):
            states = [clock.values(counts) for counts in (end, snapshot)]
            restored = restore([Hint(), *states[0], *states[1]])
            found = [restored[i] for i in clock.counters]
            if not all(isinstance(value, Known) for value in found):
                return None
            counts = tuple(np.asarray(value.value) for value in found if isinstance(value, Known))
            if counts == before and steps >= lengths[number - 1]:
                continue  # as in the last round, which trained
            end, trains = clock.run(counts, rewind.step, steps)
            if not trains:
                return number
            before = counts
    return None


def check_rounds_train(
    training: Training, key: jax.Array, state: Any, chosen: list[int], rewind: Any, lengths: Sequence[int]
) -> None:
    """Raises ValueError if a round is idle; the arguments are those of `idle_round`."""
    idle = idle_round(training, key, state, chosen, rewind, lengths)
    if idle is not None:
        raise ValueError(
            f"`rewind` {rewind!r} leaves round {idle} nothing to train: at its step counts every update of the "
            "weights to prune is 0, as after the end of a learning-rate schedule. Let the schedule end above 0 or "
            f"cover all {len(lengths)} rounds ({sum(lengths)} steps) with Finetune(), rewind to an earlier step, or "
            "restart the schedule in every round with Finetune(schedule='restart')."
        )


def is_over(training: Training, key: jax.Array, state: Any, chosen: list[int]) -> bool:
    """Whether training from `state` can change no weight to prune, although training from counts of 0 could."""
    clock = Clock(training, key, state, chosen)
    if not clock.is_telling:
        return False
    start = clock.start()
    _ = clock.loop
    with jax.ensure_compile_time_eval():
        fresh = tuple(np.zeros_like(count) for count in start)
        return not clock.run(start, 0, training.steps)[1] and clock.run(fresh, 0, training.steps)[1]


class _Program:
    """A function of trees as a jaxpr, evaluated on the known facts about their leaves."""

    def __init__(self, fn: Callable[..., PyTree], *trees: Any):
        closed = jax.make_jaxpr(fn)(*jax.eval_shape(lambda *args: args, *trees))
        self.jaxpr, self.consts = closed.jaxpr, [constant(c) for c in closed.consts]

    def __call__(self, values: list[Value]) -> list[Value]:
        return evaluate(self.jaxpr, self.consts, values)


def _is_counter(leaf: Any) -> bool:
    return jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
