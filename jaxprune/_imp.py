"""Iterative magnitude pruning: a whole experiment as one XLA program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxprune.allocation import Scope
from jaxprune.idle_rounds import check_rounds_train, is_over
from jaxprune.masking import Criterion
from jaxprune.masking.rounds import counts_of_rounds
from jaxprune.masking.units import as_arrays
from jaxprune.meshes import steady
from jaxprune.params import PyTree, mask_leaves
from jaxprune.rewind import Initialization, Rewind
from jaxprune.round_history import Round, row_of
from jaxprune.round_sparsity import RoundSparsity, Sparsities, number_of_rounds, sparsity_of_rounds
from jaxprune.round_steps import check_rewind, is_one_each, lengths_of
from jaxprune.scores import magnitude
from jaxprune.scores._scorer import call_score
from jaxprune.structures import Structure, Unstructured
from jaxprune.training import RoundKeys, Training, impose_masks, round_keys
from jaxprune.whole_numbers import check_whole


class Carry(NamedTuple):
    """The state of the experiment between two rounds; save it to resume.

    round: the next round, int32; key: the key of the experiment; state: the trained state of the last round;
    masks: the masks of that training; snapshot: the values that the rewind restores.
    """

    round: jax.Array
    key: jax.Array
    state: Any
    masks: PyTree
    snapshot: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class IMP:
    """Iterative magnitude pruning: train, prune the lowest `rate` of the remaining units, rewind, repeat.

    After r rounds exactly `round((1 - (1 - rate)^r) * n)` of the n units are pruned, or
    `round(sparsities[r - 1] * n)` where the sparsities are given.

    Args:
      train_step: (state, batch) -> (state, metrics). The state is any pytree with `.params` and
        `.opt_state`. Its optimizer should be `jp.masked(tx)`, which alone keeps pruned weights at zero.
      batch_fn: (key, step) -> batch, pure. All steps of a round get the same key, so fold `step` in:
        `jax.random.fold_in(key, step)`.
      steps: number of training steps of a round, counted from step 0; or a sequence with one for each of the
        `rounds + 1` trainings.
      rounds: number of prunings; with the dense round 0 there are `rounds + 1` trainings. It may be left out with
        a sequence of `sparsities`.
      rate: fraction of the remaining units that a round prunes, 0.2 if it is left out, or a tree like the
        parameters with one for each leaf (such as LeNet's 0.1 for the output layer). One rate for all may be
        traced, so that a sweep over rates is one program; the counts then follow from the rate as a float32.
      sparsities: the sparsity after each round, instead of `rate`: a sequence such as (0.1, 0.2, 0.3), of numbers
        (traced ones too) or of trees of them, a one-dimensional array, or a schedule of the number of rounds
        (`jp.schedules.linear(0.9, begin=0, end=rounds)`).
      score: params -> scores, or (params, key) -> scores (as for `gradual`).
      scope, structure, where: as for `make_masks`.
      rewind: `Rewind(step)`, `RewindLearningRate(step)`, `Finetune(schedule)` or `Reinitialize(init_fn)`. It
        also decides where the learning-rate schedule continues.
      evaluate: state -> metrics, at the end of each round.
      every: also evaluate after every so many steps, for curves.
      keep_masks: store the masks of each round in the history.
      minimum: minimum number of units that each leaf keeps, as for `make_masks`.

    Its methods `run`, `init`, `step` and `train` are pure and run under `jit` and `vmap`.

    Raises:
      ValueError: if a count is below 1, a rate or a sparsity is outside [0, 1), sparsities fall, the step to
        rewind to is beyond a round, the scope is unknown, `every` is given without `evaluate`, an N:M pattern
        allows fewer rounds, or both `rate` and `sparsities` are given.

    Note:
      On a CPU, XLA runs `conv_general_dilated` inside a loop many times slower than outside. To train a model
      with convolutions there, compute them by a matrix product (`nn.Conv(...,
      conv_general_dilated=jaxprune.matmul_conv)`), or run `jax.jit(train_step)` in a Python loop of
      your own.

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
      >>> experiment = jp.imp(train_step, batch_fn, steps=5, rounds=3, rate=0.2)
      >>> state, history = jax.jit(experiment.run)(jax.random.key(0), state)
      >>> [int(kept) for kept in history.kept]
      [20, 16, 13, 10]

    References:
      Frankle, Carbin, The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks, 2018,
      arXiv:1803.03635.
    """

    train_step: Callable[[Any, Any], tuple[Any, PyTree]]
    batch_fn: Callable[[jax.Array, jax.Array], Any]
    _: dataclasses.KW_ONLY
    steps: int | Sequence[int]
    rounds: int | None = None
    rate: Any = None
    sparsities: Sparsities | None = None
    score: Callable[..., PyTree] = magnitude
    scope: Scope = "global"
    structure: Structure = Unstructured()
    where: PyTree | None = None
    rewind: Initialization = Rewind()
    evaluate: Callable[[Any], PyTree] | None = None
    every: int | None = None
    keep_masks: bool = False
    minimum: int | float = 0

    def __post_init__(self):
        rounds = number_of_rounds(self.rounds, self.rate, self.sparsities)
        object.__setattr__(self, "rounds", rounds)
        lengths = lengths_of(self.steps, rounds + 1)
        object.__setattr__(self, "steps", lengths if is_one_each(self.steps) else lengths[0])
        _ = self._criterion  # raises for what is no criterion
        _ = self._training  # and for an `every` that is none
        check_rewind(self.rewind, self._lengths)
        self._sparsity.check(self._rounds, self.structure)

    @functools.cached_property
    def _lengths(self) -> tuple[int, ...]:
        """Number of steps of each training."""
        return lengths_of(self.steps, self._rounds + 1)

    @property
    def _rounds(self) -> int:
        return int(self.rounds or 0)

    @functools.cached_property
    def _sparsity(self) -> RoundSparsity:
        return sparsity_of_rounds(self._rounds, self.rate, self.sparsities)

    @property
    def curve_steps(self) -> tuple[int, ...]:
        """Steps at which the `curve` of a row is evaluated."""
        return self._training.curve_steps

    @functools.cached_property
    def _training(self) -> Training:
        return Training(self.train_step, self.batch_fn, max(self._lengths), self.evaluate, self.every)

    def init(self, key: jax.Array, state: Any) -> Carry:
        """The carry before the first round: nothing is pruned, nothing is trained.

        Args:
          key: a `jax.random.key`; all batches, scores and newly drawn weights follow from it.
          state: any pytree with `.params` and `.opt_state`. If the optimizer is from `masked`, the masks are in
            its state. Otherwise `apply_masks` follows each step (and the gradients of pruned weights reach the
            moments of the optimizer).

        Returns:
          A `Carry` with arrays of its own: donating it to `step` does not delete `key` and `state`.

        Raises:
          ValueError: if a later round would train nothing, because the learning rate has run out at the step
            where `rewind` starts that round. (Traced step counts of the state are taken as 0.)
        """
        state = self._training.match_dtypes(key, state)
        units = self._criterion.units(state.params)
        masks = units.full_masks()
        units.check_minimum(self._sparsity.after(units, self._rounds))
        check_rounds_train(self._training, key, state, units.chosen, self.rewind, self._lengths)
        state = impose_masks(state, masks)
        carry = Carry(jnp.zeros([], jnp.int32), key, state, masks, self.rewind.take(state))
        # Each leaf a buffer of its own, neither the caller's nor one of another leaf: so it can be donated.
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), carry)

    def step(self, carry: Carry) -> tuple[Carry, Round]:
        """One round: prune and rewind (not in round 0), then train and evaluate.

        There are `rounds + 1` rounds: round 0 trains the dense network.

        Args:
          carry: from `init` or the last `step`.

        Returns:
          The next carry and the row of this round.

        Raises:
          ValueError: if all rounds are done and `carry.round` is a known number.
        """
        if not isinstance(carry.round, Tracer) and np.any(np.asarray(carry.round) > self._rounds):
            raise ValueError(
                f"all {self._rounds + 1} rounds (0 to {self._rounds}) are done: there is no next one."
            )
        keys = round_keys(carry.key, carry.round)
        is_first = carry.round == 0

        def prune(state: Any, masks: PyTree) -> tuple[Any, PyTree]:
            return self._pruned(keys, state, masks, carry.round, carry.snapshot)

        def take(state: Any, old: PyTree) -> PyTree:
            return jax.lax.cond(is_first, lambda s, _: self.rewind.take(s), lambda _, o: o, state, old)

        state, masks = jax.lax.cond(is_first, lambda *same: same, prune, carry.state, carry.masks)
        start = jnp.where(is_first, 0, self.rewind.step).astype(jnp.int32)
        state, metrics, snapshot, curve = self._training.run(
            keys.batches,
            state,
            masks,
            start,
            (self.rewind.step, take, carry.snapshot),
            self._stop(carry.round),
        )
        row = self._row(carry.round, state, masks, metrics, curve)
        return Carry(carry.round + 1, carry.key, state, masks, snapshot), row

    def run(self, key: jax.Array, state: Any) -> tuple[Any, Round]:
        """All rounds, as one program under `jit`.

        Args:
          key, state: as for `init`.

        Returns:
          The state after the training of the last round, and the history: a `Round` whose leaves have a leading
          axis of length `rounds + 1`. Row r was trained after r prunings.
        """
        start = steady(lambda carry: self.step(carry)[0], self.init(key, state))
        carry, history = jax.lax.scan(lambda carry, _: self.step(carry), start, length=self._rounds + 1)
        return carry.state, history

    def train(self, key: jax.Array, state: Any, masks: PyTree, start: int = 0) -> tuple[Any, Round]:
        """One training like the last, but under given masks, for control experiments.

        Args:
          key: a `jax.random.key`.
          state: as for `init`.
          masks: tree like the parameters, such as a row of `history.masks`, also under `jax.vmap` or
            `jax.lax.map`.
          start: first step; 0 trains from the beginning. A state that was rewound to step k continues at k.

        Returns:
          The trained state and its row (`round` is -1).

        Raises:
          ValueError: if `start` is no step of the training, or the step counts of the state are past the end of the
            learning-rate schedule.
        """
        check_whole(at_least=0, start=start)
        if start >= self._lengths[-1]:
            raise ValueError(
                f"`start` must be below the {self._lengths[-1]} steps of a training, got {start}."
            )
        state = self._training.match_dtypes(key, state)
        if is_over(self._training, key, state, self._criterion.units(state.params).chosen):
            raise ValueError(
                "`state` must be one before training: at its step counts every update of the weights to prune is "
                "0, because the learning-rate schedule has run out."
            )
        masks = as_arrays(mask_leaves(state.params, masks), state.params)
        batch_key = jax.random.split(key, 3)[0]
        trained, metrics, _, curve = self._training.run(
            batch_key,
            impose_masks(state, masks),
            masks,
            jnp.asarray(start, jnp.int32),
            stop=self._stop(jnp.int32(self._rounds)),
        )
        return trained, self._row(jnp.int32(-1), trained, masks, metrics, curve)

    # Inside a round.

    @property
    def _criterion(self) -> Criterion:
        return Criterion(self.structure, self.scope, self.where, self.minimum)

    def _pruned(
        self, keys: RoundKeys, state: Any, masks: PyTree, round: jax.Array, snapshot: PyTree
    ) -> tuple[Any, PyTree]:
        """The state from which a round after the first starts, and its masks, after those of the last round."""
        masks = self._prune(keys.scores, state.params, masks, round)
        return impose_masks(self.rewind.restore(keys.weights, state, snapshot), masks), masks

    def _prune(self, key: jax.Array, params: PyTree, masks: PyTree, round: jax.Array) -> PyTree:
        units = self._criterion.units(params)
        # Exact arithmetic on the host for all rounds, since the round is traced.
        rounds = range(self._rounds + 1)
        table = counts_of_rounds([units.counts(self._sparsity.after(units, r)) for r in rounds])
        counts = jax.tree.map(lambda column: column[round], table)
        return units.next_masks(call_score(self.score, params, key), counts, masks)

    def _stop(self, round: jax.Array) -> jax.Array | None:
        """The number of steps of a round; None if all have as many."""
        return None if len(set(self._lengths)) == 1 else jnp.asarray(self._lengths, jnp.int32)[round]

    def _row(self, round: jax.Array, state: Any, masks: PyTree, metrics: PyTree, curve: PyTree) -> Round:
        shown = masks if self.keep_masks else ()
        return row_of(round, state.params, masks, metrics, self._last(state, curve), curve, shown)

    def _last(self, state: Any, curve: PyTree) -> PyTree:
        """The evaluation at the end of a round: the last point of its curve where all curves end there."""
        is_at_end = len(set(self._lengths)) == 1
        return self._training.last(state, curve) if is_at_end else self._training.evaluated(state)


imp = IMP
