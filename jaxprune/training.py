"""One training under one set of masks, as a loop inside a program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.masking import apply_masks
from jaxprune.meshes import steady
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.rewind import replace
from jaxprune.transforms._masks_in_state import has_masks, with_masks
from jaxprune.transforms._moments import clear_moments
from jaxprune.whole_numbers import check_whole


class RoundKeys(NamedTuple):
    """The keys of one round: of its batches, its scores, and newly drawn weights."""

    batches: jax.Array
    scores: jax.Array
    weights: jax.Array


def round_keys(key: jax.Array, round: Any) -> RoundKeys:
    """The keys of a round of an experiment with this key."""
    return RoundKeys(*jax.random.split(jax.random.fold_in(key, round), 3))


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """`steps` calls of `train_step`, with `evaluate` after every `every` of them.

    The loop runs in segments. They end where the state is evaluated or a snapshot is taken, so that the step
    itself does neither. The step is compiled once for all segments.
    """

    train_step: Callable[[Any, Any], tuple[Any, PyTree]]
    batch_fn: Callable[[jax.Array, jax.Array], Any]
    steps: int
    evaluate: Callable[[Any], PyTree] | None
    every: int | None

    def __post_init__(self):
        if self.every is None:
            return
        check_whole(every=self.every)
        if self.evaluate is None:
            raise ValueError(
                "`every` asks for curves of `evaluate`, which is not given: pass `evaluate` too."
            )
        if self.every > self.steps:
            raise ValueError(f"`every` must be at most `steps`, got every={self.every}, steps={self.steps}.")

    @functools.cached_property
    def step(self) -> Callable[[Any, jax.Array, jax.Array], tuple[Any, PyTree]]:
        """(state, key, number of the step) -> (state, metrics). It is traced once for all its callers."""

        def step(state: Any, key: jax.Array, number: jax.Array) -> tuple[Any, PyTree]:
            return self.train_step(state, self.batch_fn(key, number))

        return jax.jit(step, inline=True)

    @property
    def curve_steps(self) -> tuple[int, ...]:
        """Steps at which the curve is evaluated."""
        return tuple(range(self.every, self.steps + 1, self.every)) if self.every else ()

    def run(
        self,
        key: jax.Array,
        state: Any,
        masks: PyTree,
        start: jax.Array,
        remember: tuple[int, Callable[[Any, PyTree], PyTree], PyTree] | None = None,
        stop: jax.Array | None = None,
    ) -> tuple[Any, PyTree, PyTree, PyTree]:
        """Steps start, ..., stop - 1.

        Args:
          key: the key of all batches.
          state: a state with the dtypes of `match_dtypes`, on which the masks are imposed.
          masks: enforced here if the optimizer holds none.
          start: first step, int32.
          remember: (step, (state, old) -> new, old): the snapshot to take of the state at that step.
          stop: the step that is not run any more, at most `steps`; None for `steps`.

        Returns:
          (state, last metrics, snapshot, curve).
        """
        in_optimizer = has_masks(state.opt_state)

        def one(step: jax.Array, carry: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
            state, metrics = self.step(carry[0], key, step)
            if not in_optimizer:
                state = replace(state, params=apply_masks(state.params, masks))
            return state, metrics

        metrics = _zeros(lambda s: one(jnp.zeros([], jnp.int32), (s, None))[1], state)
        at, update, memory = remember or (0, lambda _, old: old, ())
        ends = sorted({self.steps, *self.curve_steps} | {at} - {0})
        if ends == [self.steps] and not self.curve_steps:
            state, metrics = steady(lambda carry: one(start, carry), (state, metrics))
            state, metrics = jax.lax.fori_loop(
                start, self.steps if stop is None else stop, one, (state, metrics)
            )
            return state, metrics, memory, ()

        def segment(carry: Any, limits: tuple[jax.Array, jax.Array]) -> tuple[Any, PyTree]:
            state, metrics, memory = carry
            low, high = limits
            state, metrics = steady(lambda carry: one(low, carry), (state, metrics))
            end = high if stop is None else jnp.minimum(high, stop)
            state, metrics = jax.lax.fori_loop(jnp.maximum(low, start), end, one, (state, metrics))
            if at:
                memory = jax.lax.cond(high == at, update, lambda _, old: old, state, memory)
            seen = ()
            if self.every:
                is_due = (high % self.every == 0) & (high > start) & (high == end)
                seen = jax.lax.cond(is_due, self.evaluated, lambda s: _not_run(self.evaluated, s), state)
            return (state, metrics, memory), seen

        limits = jnp.asarray([0, *ends[:-1]], jnp.int32), jnp.asarray(ends, jnp.int32)
        carry = steady(
            lambda carry: segment(carry, (limits[0][0], limits[1][0]))[0], (state, metrics, memory)
        )
        (state, metrics, memory), seen = jax.lax.scan(segment, carry, limits)
        rows = np.flatnonzero(np.isin(ends, self.curve_steps))
        return state, metrics, memory, jax.tree.map(lambda x: x[rows], seen)

    def evaluated(self, state: Any) -> PyTree:
        """`evaluate(state)` as arrays; an empty result without `evaluate`."""
        return () if self.evaluate is None else jax.tree.map(jnp.asarray, self.evaluate(state))

    def last(self, state: Any, curve: PyTree) -> PyTree:
        """`evaluated` at the end of a training: the last point of its curve if the curve ends there."""
        if self.steps in self.curve_steps:
            return jax.tree.map(lambda values: values[-1], curve)
        return self.evaluated(state)

    def match_dtypes(self, key: jax.Array, state: Any) -> Any:
        """The state in the dtypes that a training step returns (a loop needs them to be equal).

        Raises:
          TypeError: if the state has no `.params` or no `.opt_state`.
          ValueError: if the training step returns another tree or other shapes.
        """
        for field in ("params", "opt_state"):
            if not hasattr(state, field):
                raise TypeError(
                    f"`state` must have .params and .opt_state (flax TrainState fits), "
                    f"{type(state).__name__} has no .{field}."
                )
        state = jax.tree.map(jnp.asarray, state)
        after, _ = jax.eval_shape(self.step, state, key, jnp.zeros([], jnp.int32))
        paths, leaves, treedef = flatten_with_paths(state)
        after_paths, new, after_treedef = flatten_with_paths(after)
        if treedef != after_treedef:
            odd = sorted(set(paths) ^ set(after_paths)) or ["(same leaves, other node types)"]
            raise ValueError(
                f"`train_step` must return a state like its argument; the trees differ at {odd[0]!r}."
            )
        for path, old, out in zip(paths, leaves, new, strict=True):
            if old.shape != out.shape:
                raise ValueError(
                    f"`train_step` must return a state like its argument; the shape of {path!r} changed from "
                    f"{old.shape} to {out.shape}."
                )
        return jax.tree.unflatten(
            treedef, [_with_dtype(x, out.dtype) for x, out in zip(leaves, new, strict=True)]
        )


def impose_masks(state: Any, masks: PyTree) -> Any:
    """The state with pruned weights at zero, masks in its optimizer state and no memory of pruned weights."""
    opt_state = clear_moments(state.opt_state, state.params, masks)
    if has_masks(opt_state):
        opt_state = with_masks(opt_state, masks)
    return replace(state, params=apply_masks(state.params, masks), opt_state=opt_state)


def _zeros(fn: Callable, *args: Any) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, *args))


def _not_run(fn: Callable, state: Any) -> PyTree:
    """NaN (0 for integers) in the shapes of `fn(state)`."""

    def mark(x: jax.Array) -> jax.Array:
        return jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(mark, _zeros(fn, state))


def _with_dtype(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` in a dtype, and no longer weakly typed."""
    if x.dtype == dtype and not getattr(x, "weak_type", False):
        return x
    return jax.lax.convert_element_type(x, dtype)
