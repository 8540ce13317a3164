"""The training of one window: masked gradient steps of one compiled function, batch after batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.jaxprs.stream import Run


class Training(NamedTuple):
    """What is compiled once for all windows of a kind.

    run: (sources, values of a batch) -> results, the first `n_outs` of which have targets; relative: whether updates
    are relative to the sizes of the parameters.
    """

    run: Run
    optimizer: Any
    relative: bool
    steps: int
    n_outs: int


def train(
    setting: Training,
    start: Sequence[Any],
    fixed: Sequence[Any],
    masks: Sequence[Any],
    inputs: Sequence[list[Any]],
    targets: Sequence[list[Any]],
    weights: Sequence[list[Any]],
    scale: float,
    matrices: Sequence[Any],
) -> list[Any]:
    """The trained parameters, in float32 at least, given those to start from and the fixed sources.

    Relative updates of a parameter near 0, such as a bias, are those of the smallest of the `matrices`.
    """
    wide = [jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32)) for x in start]
    sizes = _sizes(wide, list(masks), list(matrices)) if setting.relative else [jnp.ones(()) for _ in wide]
    dtypes = tuple(jnp.dtype(x.dtype) for x in start)
    state = setting.optimizer.init(wide)
    for i in range(setting.steps):
        batch = i * len(inputs) // setting.steps if setting.steps < len(inputs) else i % len(inputs)
        wide, state = _step(
            setting.run.args[0], setting.optimizer, setting.n_outs, dtypes,
            wide, state, list(fixed), list(masks), sizes, inputs[batch], targets[batch], weights[batch], scale,
        )  # fmt: skip
    return wide


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _step(
    segment, optimizer, n_outs, dtypes, wide, state, fixed, masks, sizes, inputs, target, weights, scale
):
    inputs = [_without_nan(x) for x in inputs]  # of padding rows: 0 times NaN is no gradient of 0

    def objective(wide):
        narrow = [x.astype(dtype) for x, dtype in zip(wide, dtypes, strict=True)]
        outs = segment.run([*narrow, *fixed], inputs)
        return squared_error(target, outs[:n_outs], weights) / scale

    loss, grads = jax.value_and_grad(objective)(wide)
    grads = [_kept(g, mask) for g, mask in zip(grads, masks, strict=True)]
    updates, state = optax.with_extra_args_support(optimizer).update(
        grads, state, wide, value=loss, grad=grads
    )
    new = [x + _kept(u * size, mask) for x, u, size, mask in zip(wide, updates, sizes, masks, strict=True)]
    return new, state


def _without_nan(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(x), 0, x) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _kept(x: jax.Array, mask: Any) -> jax.Array:
    return x if mask is None else jnp.where(mask, x, jnp.zeros((), x.dtype))


@jax.jit
def _sizes(values: list[Any], masks: list[Any], matrices: list[Any]) -> list[jax.Array]:
    """The root mean square of the kept entries of each parameter, at least the smallest one of a matrix."""
    sizes = [_size(value, mask is None or mask) for value, mask in zip(values, masks, strict=True)]
    of_matrices = jnp.stack([_size(w, w != 0) for w in matrices] or sizes)
    least = jnp.min(jnp.where(of_matrices > 0, of_matrices, jnp.inf))
    least = jnp.where(jnp.isfinite(least), least, 1.0)  # all of them are 0
    return [jnp.maximum(size, least) for size in sizes]


def _size(value: jax.Array, kept: Any) -> jax.Array:
    kept = jnp.broadcast_to(kept, value.shape)
    squares = jnp.where(kept, jnp.square(value.astype(jnp.float32)), 0)
    return jnp.sqrt(jnp.sum(squares) / jnp.maximum(jnp.sum(kept), 1))


def squared_error(target: Sequence[Any], outs: Sequence[Any], weights: Sequence[Any]) -> Any:
    """The sum of squared differences, in float32; rows of weight 0 don't count."""
    return _squared_error(list(target), list(outs), list(weights))


@jax.jit
def _squared_error(target: list[Any], outs: list[Any], weights: list[Any]) -> Any:
    total: Any = jnp.zeros((), jnp.float32)
    for t, y, w in zip(target, outs, weights, strict=True):
        difference = y.astype(jnp.float32) - t.astype(jnp.float32)
        square = jnp.square(difference if w is None else jnp.where(w != 0, difference, 0))
        total += jnp.sum(square if w is None else square * w)
    return total
