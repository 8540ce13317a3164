"""Instability to the noise of SGD: from which step on two trainings end in one linearly connected region."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.lookahead import weights_of
from jaxprune.masking.units import as_arrays
from jaxprune.params import PyTree, aligned, mask_leaves, resolved
from jaxprune.tickets._connectivity import barrier, between
from jaxprune.training import Training, impose_masks, round_keys
from jaxprune.whole_numbers import check_rising, check_whole

# A number that no round of an experiment has: the keys of its batches are others.
_AFTER_THE_SPLIT = 2**32 - 1


class Instabilities(NamedTuple):
    """What `Instability.run` returns: one row for each split step; values are trees like `evaluate` returns.

    split: (splits,) steps; ends: (splits, 2) values of the two networks; values: (splits, points) along the line
    between them; barrier: (splits,) the rise above the mean of the ends.
    """

    split: jax.Array
    ends: PyTree
    values: PyTree
    barrier: PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Instability:
    r"""Trains to step k, splits, trains both copies on different batches, and measures the line between them.

    A network is stable at k if the two copies end in one region without a barrier between. Frankle et al. find that
    the tickets of iterative magnitude pruning with rewinding to k match the dense network just where they are
    stable. All split steps are one program, which trains each step up to the last split once; `jax.vmap` adds
    seeds. Every float of the state is interpolated, also the statistics of BatchNorm, which are known to be wrong
    between two networks: let `evaluate` take them from its batch, or estimate them anew.

    Args:
      train_step, batch_fn: as for `jp.imp`.
      evaluate: state -> a number, or a tree of numbers such as `{"loss": ..., "error": ...}`, as for `jp.imp`.
      steps: number of steps of a whole training.
      splits: the steps k, rising, each below `steps`; 0 splits at initialization.
      points: number of points on the line, both ends among them.

    Raises:
      ValueError: splits that don't rise, or lie outside [0, steps).

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> from flax.training.train_state import TrainState
      >>> def loss_fn(params, x):
      ...     return jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - x) ** 2)
      >>> def train_step(state, x):
      ...     return state.apply_gradients(grads=jax.grad(loss_fn)(state.params, x)), {}
      >>> def batch_fn(key, step):
      ...     return jax.random.normal(jax.random.fold_in(key, step), (8, 4))
      >>> params = {"up": jax.random.normal(jax.random.key(0), (4, 16)), "down": jnp.zeros((16, 4))}
      >>> state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(0.01))
      >>> x = batch_fn(jax.random.key(1), 0)
      >>> def evaluate(state):
      ...     return loss_fn(state.params, x)
      >>> made = jp.instability(train_step, batch_fn, evaluate, steps=20, splits=(0, 10))
      >>> rows = jax.jit(made.run)(jax.random.key(2), state)
      >>> rows.split, rows.values.shape, rows.barrier.shape
      (Array([ 0, 10], dtype=int32), (2, 11), (2,))

    References:
      Frankle, Dziugaite, Roy, Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2019,
      arXiv:1912.05671.
    """

    train_step: Callable[[Any, Any], tuple[Any, PyTree]]
    batch_fn: Callable[[jax.Array, jax.Array], Any]
    evaluate: Callable[[Any], Any]
    _: dataclasses.KW_ONLY
    steps: int
    splits: Sequence[int]
    points: int = 11

    def __post_init__(self):
        check_whole(steps=self.steps)
        check_whole(at_least=2, points=self.points)
        object.__setattr__(self, "splits", check_rising("splits", self.splits, below=self.steps))

    @functools.cached_property
    def _training(self) -> Training:
        return Training(self.train_step, self.batch_fn, self.steps, None, None)

    def run(self, key: jax.Array, state: Any, masks: PyTree | None = None) -> Instabilities:
        """The whole experiment, as one program under `jit`.

        Args:
          key: a `jax.random.key`. Up to the split the batches are those of the dense training of `jp.imp` and
            `jp.late_rewinding` with this key, so that their tickets are tickets of this network. After the split
            both copies have batches of their own.
          state: any pytree with `.params` and `.opt_state`; its optimizer best in `jp.masked`.
          masks: of a ticket, imposed at the split: a tree like the parameters, or, with a leading axis, one for each
            split, such as `jax.tree.map(lambda m: m[:, r], history.masks)` of `jp.late_rewinding` at the same
            steps. None for the dense network.

        Returns:
          An `Instabilities` with one row for each split.

        Raises:
          ValueError: masks that do not fit the parameters, or another number of them than of splits.
        """
        copy_keys = jax.random.split(jax.random.fold_in(key, _AFTER_THE_SPLIT), 2)
        trunk_key = round_keys(key, 0).batches
        state = self._training.match_dtypes(key, state)
        splits = jnp.asarray(self.splits, jnp.int32)
        of_split = _for_each_split(masks, state.params, len(self.splits))

        def step(carry: tuple[Any, jax.Array], row: tuple[jax.Array, PyTree]) -> tuple[Any, Any]:
            (state, start), (split, masks) = carry, row
            state = self._trained(trunk_key, state, None, start, split)
            held = state if masks is None else impose_masks(state, masks)
            ends = jax.lax.map(lambda k: self._trained(k, held, masks, split, self.steps), copy_keys)
            first, second = (jax.tree.map(lambda x, i=i: x[i], ends) for i in range(2))
            values = jax.lax.map(
                lambda alpha: _numbers(self.evaluate(between(first, second, alpha))),
                jnp.linspace(0.0, 1.0, self.points),
            )
            return (state, split), values

        _, values = jax.lax.scan(step, (state, jnp.zeros([], jnp.int32)), (splits, of_split))
        return Instabilities(
            splits,
            jax.tree.map(lambda x: x[:, jnp.array([0, -1])], values),
            values,
            jax.tree.map(jax.vmap(barrier), values),
        )

    def _trained(self, key: jax.Array, state: Any, masks: PyTree | None, start: Any, stop: Any) -> Any:
        """The state after the steps start, ..., stop - 1."""
        held = jax.tree.map(lambda _: True, state.params) if masks is None else masks
        return self._training.run(key, state, held, start, stop=stop)[0]


instability = Instability


def _numbers(tree: Any) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def _for_each_split(masks: PyTree | None, params: PyTree, number: int) -> PyTree | None:
    """Masks as arrays with a leading axis of splits."""
    if masks is None:
        return None
    masks = resolved(params, masks, "masks")
    pairs = zip(
        aligned(weights_of(params), weights_of(masks), "masks"),
        jax.tree.leaves(weights_of(params)),
        strict=True,
    )
    if not any(jnp.ndim(mask) > jnp.ndim(w) for mask, w in pairs):
        full = as_arrays(mask_leaves(params, masks), params)
        return jax.tree.map(lambda mask: jnp.broadcast_to(mask, (number, *mask.shape)), full)
    lengths = {jnp.shape(mask)[:1] for mask in jax.tree.leaves(masks)}
    if lengths != {(number,)}:
        raise ValueError(f"`masks` must have a leading axis of {number}, one for each split, got {lengths}.")
    return jax.vmap(lambda one: as_arrays(mask_leaves(params, one), params))(masks)
