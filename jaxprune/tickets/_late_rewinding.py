"""Late rewinding: the tickets of every step to rewind to, in one program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune._imp import IMP
from jaxprune.round_history import Round
from jaxprune.training import Training, round_keys
from jaxprune.whole_numbers import check_rising


@dataclasses.dataclass(frozen=True, eq=False)
class LateRewinding:
    r"""Runs iterative pruning once for each step k to rewind to, all in one program.

    Row k of the result is, weight for weight, the history of the same experiment with `rewind=Rewind(k)`. The dense
    training, which all share, runs once. Plotted against k, the accuracy of the tickets is the curve of late
    rewinding. Their masks, one tree for each k, are what `jp.instability` takes.

    Args:
      imp: the experiment, a `jp.imp` that rewinds by `Rewind` or `RewindLearningRate`; its own step is not used. With
        `keep_masks=True` the result holds the masks.
      steps: the steps k, rising, each below the steps of a training of `imp`.

    Raises:
      TypeError: an `imp` that is no `jp.imp`, or has another rewind.
      ValueError: steps that don't rise, or lie outside [0, steps of a training).

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> from flax.training.train_state import TrainState
      >>> def train_step(state, batch):
      ...     loss, grads = jax.value_and_grad(lambda p: jnp.mean((batch @ p["w"] - 1) ** 2))(state.params)
      ...     return state.apply_gradients(grads=grads), {"loss": loss}
      >>> def batch_fn(key, step):
      ...     return jax.random.normal(jax.random.fold_in(key, step), (8, 10))
      >>> params = {"w": jnp.linspace(0.1, 1, 20).reshape(10, 2)}
      >>> state = TrainState.create(apply_fn=None, params=params, tx=jp.masked(optax.sgd(0.01)))
      >>> imp = jp.imp(train_step, batch_fn, steps=9, rounds=2, rate=0.5, keep_masks=True)
      >>> history = jax.jit(jp.late_rewinding(imp, (0, 3, 6)).run)(jax.random.key(0), state)
      >>> history.kept.tolist(), history.masks["w"].shape
      ([[20, 10, 5], [20, 10, 5], [20, 10, 5]], (3, 3, 10, 2))

    References:
      Frankle, Dziugaite, Roy, Carbin, Stabilizing the Lottery Ticket Hypothesis, 2019, arXiv:1903.01611.
      Frankle, Dziugaite, Roy, Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2019,
      arXiv:1912.05671.
    """

    imp: IMP
    steps: Sequence[int]

    def __post_init__(self):
        if not isinstance(self.imp, IMP):
            raise TypeError(f"`imp` must be a jp.imp(...), got {type(self.imp).__name__}.")
        steps = check_rising("steps", self.steps, below=min(self.imp._lengths))
        _ = [_rewinding_to(self.imp.rewind, step) for step in steps]
        object.__setattr__(self, "steps", steps)

    @functools.cached_property
    def _quiet(self) -> Training:
        """The same training without evaluations."""
        return dataclasses.replace(self.imp._training, evaluate=None, every=None)

    def run(self, key: jax.Array, state: Any) -> Round:
        """All trainings, as one program under `jit`; `jax.vmap` adds seeds.

        Args:
          key, state: as for `jp.imp(...).init`.

        Returns:
          A `Round` whose leaves have two leading axes: the steps to rewind to, and the `rounds + 1` trainings. Its
          first training, the dense one, is the same for each step.

        Raises:
          ValueError: if a round would train nothing, as for `jp.imp(...).init`.
        """
        imp = self.imp
        last = dataclasses.replace(imp, rewind=_rewinding_to(imp.rewind, self.steps[-1]))
        start = last.init(key, state)
        batch_key, dense_masks = round_keys(key, 0).batches, start.masks
        zero = jnp.zeros([], jnp.int32)
        dense, metrics, _, curve = imp._training.run(
            batch_key, start.state, dense_masks, zero, stop=imp._stop(zero)
        )
        first = imp._row(zero, dense, dense_masks, metrics, curve)

        def rewound(carry: tuple[Any, jax.Array], step: jax.Array) -> tuple[tuple[Any, jax.Array], Round]:
            trunk = self._quiet.run(batch_key, carry[0], dense_masks, carry[1], stop=step)[0]
            snapshot = imp.rewind.take(trunk)

            def round(carry: tuple[Any, Any], number: jax.Array) -> tuple[tuple[Any, Any], Round]:
                keys = round_keys(key, number)
                state, masks = imp._pruned(keys, *carry, number, snapshot)
                state, metrics, _, curve = imp._training.run(
                    keys.batches, state, masks, step, stop=imp._stop(number)
                )
                return (state, masks), imp._row(number, state, masks, metrics, curve)

            rounds = jnp.arange(1, imp._rounds + 1, dtype=jnp.int32)
            _, rows = jax.lax.scan(round, (dense, dense_masks), rounds)
            return (trunk, step), jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rows)

        _, history = jax.lax.scan(rewound, (start.state, zero), jnp.asarray(self.steps, jnp.int32))
        return history


late_rewinding = LateRewinding


def _rewinding_to(rewind: Any, step: int) -> Any:
    """The same choice for another step."""
    try:
        return dataclasses.replace(rewind, step=step)
    except TypeError:
        raise TypeError(
            f"`imp` must rewind to a step, by Rewind or RewindLearningRate, got rewind={rewind!r}."
        ) from None
