"""Linear mode connectivity: the loss along the line between two trained networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, aligned, flatten_with_paths, is_float_array
from jaxprune.whole_numbers import check_whole


class Connectivity(NamedTuple):
    r"""What `linear_connectivity` measures; each field but `alpha` is a tree like what the loss function returns.

    alpha: (points,) positions on the line, 0 at `params_a` and 1 at `params_b`; values: (points,) means over the
    batches; barrier: the rise \( \max_\alpha v(\alpha) - (v(0) + v(1)) / 2 \), never below 0 for a convex path.
    """

    alpha: jax.Array
    values: PyTree
    barrier: PyTree


def linear_connectivity(
    loss_fn: Callable[[PyTree, Any], Any],
    params_a: PyTree,
    params_b: PyTree,
    batches: Iterable[Any],
    points: int = 11,
    refresh: Callable[[PyTree], PyTree] | None = None,
) -> Connectivity:
    r"""Measures losses along the line \( (1 - \alpha) w_a + \alpha w_b \) between two networks.

    Two networks are linearly connected if the barrier is about 0, that of the noise of training; the error of a
    network that is stable to the noise of SGD has none. Everything in `params` that is a float is interpolated, also
    the statistics of BatchNorm if they are in it; `refresh` can estimate these anew at each point.

    Args:
      loss_fn: (params, batch) -> a number, or a tree of numbers such as `{"loss": ..., "error": ...}`.
      params_a, params_b: trees of the same paths and shapes.
      batches: the batches over which the numbers are averaged, all equally.
      points: number of points on the line, both ends among them.
      refresh: params -> params, applied at every point before it is measured.

    Returns:
      A `Connectivity`. The whole function runs under `jit` and `vmap` as well.

    Raises:
      ValueError: trees that don't match, fewer than two points, no batches.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> def loss_fn(w, x):
      ...     return jnp.mean((w**2 - 1) ** 2) * x
      >>> line = jp.linear_connectivity(loss_fn, jnp.array(-1.0), jnp.array(1.0), [1.0], points=5)
      >>> line.values, float(line.barrier)
      (Array([0.    , 0.5625, 1.    , 0.5625, 0.    ], dtype=float32), 1.0)

    References:
      Frankle, Dziugaite, Roy, Carbin, Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2019,
      arXiv:1912.05671.
    """
    check_whole(at_least=2, points=points)
    ends = _ends(params_a, params_b)
    batches = list(batches)
    if not batches:
        raise ValueError("`batches` must have at least one batch, got none.")
    alpha = jnp.linspace(0.0, 1.0, points)
    measure = _along(loss_fn, refresh)
    total = measure(ends, alpha, batches[0])
    for batch in batches[1:]:
        total = jax.tree.map(jnp.add, total, measure(ends, alpha, batch))
    values = jax.tree.map(lambda x: x / len(batches), total)
    return Connectivity(alpha, values, jax.tree.map(barrier, values))


def barrier(values: jax.Array) -> jax.Array:
    """The rise along a line above the mean of its ends."""
    return jnp.max(values) - (values[0] + values[-1]) / 2


def between(params_a: PyTree, params_b: PyTree, alpha: Any) -> PyTree:
    """The network at a point of the line; what is no float is that of `params_a`."""

    def one(a: Any, b: Any) -> Any:
        if not is_float_array(a):
            return a
        wide = jnp.promote_types(a.dtype, jnp.float32)
        # Exact at both ends.
        return ((1 - alpha) * a.astype(wide) + alpha * b.astype(wide)).astype(a.dtype)

    return jax.tree.map(one, params_a, params_b)


def _ends(params_a: PyTree, params_b: PyTree) -> tuple[PyTree, PyTree]:
    """Both trees in the form of the first, checked."""
    params_a = jax.tree.map(jnp.asarray, params_a)
    paths, leaves, treedef = flatten_with_paths(params_a)
    others = [jnp.asarray(x) for x in aligned(params_a, params_b, "params_b")]
    for path, a, b in zip(paths, leaves, others, strict=True):
        if a.shape != b.shape:
            raise ValueError(
                f"`params_b` must have the shapes of `params_a`, got {b.shape} for {a.shape} at {path!r}."
            )
    return params_a, jax.tree.unflatten(treedef, others)


def _along(
    loss_fn: Callable[[PyTree, Any], Any], refresh: Callable[[PyTree], PyTree] | None
) -> Callable[..., Any]:
    @jax.jit
    def measure(ends: tuple[PyTree, PyTree], alpha: jax.Array, batch: Any) -> PyTree:
        def at(point: jax.Array) -> PyTree:
            params = between(*ends, point)
            found = loss_fn(params if refresh is None else refresh(params), batch)
            return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), found)

        return jax.lax.map(at, alpha)

    return measure
