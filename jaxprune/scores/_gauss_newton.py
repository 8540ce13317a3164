"""The diagonal of the Gauss-Newton matrix of a model's outputs: Fisher information without a loss or labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.host import settled
from jaxprune.jaxprs import is_array_leaf
from jaxprune.jaxprs.rows import weights_of_entries
from jaxprune.params import PyTree, Where, flatten_with_paths, prunable_leaves
from jaxprune.scores._gradients import batches_of
from jaxprune.tree_nodes import is_float_array, split_leaves


def gauss_newton(
    fn: Callable[..., Any],
    params: PyTree,
    batches: Iterable[Any],
    *,
    where: Where = None,
    row_weights: Callable[..., Any] | None = None,
    key: jax.Array | None = None,
) -> PyTree:
    r"""Squared change of a model's outputs when a weight is pruned: \(w^2\,\frac1B\sum_b (v_b^\top \partial_w f_b)^2\).

    \(f_b\) are all outputs for batch b and \(v_b\) are random signs, so that the expectation of the square is
    \(\sum_o (\partial_w f_{b,o})^2\), the diagonal of the Gauss-Newton matrix of \(\frac12 \|f\|^2\). It is to the
    outputs what `fisher` is to a loss, and needs neither labels nor the gradients of single samples, as the signs
    separate the samples of a batch. More batches give a better estimate, at the cost of one gradient each.

    Args:
      fn: function of (params, *inputs).
      params: pytree of arrays.
      batches: iterable of batches. A batch is a tuple of inputs, or one input.
      where: tree of bools (or a prefix of one, or a function that returns it) that selects the leaves to score; None
        for `prunable(params)`.
      row_weights: function of the inputs of a batch that returns the weights of the rows, such as the padding mask.
        Outputs with these rows as their first axes, or as one first axis, are weighted by them.
      key: PRNG key of the signs; None for `jax.random.key(0)`.

    Returns:
      Tree like `params` of float32 scores, infinite for float arrays that `where` does not select; other leaves are
      returned unchanged.

    Raises:
      ValueError: if there is no batch, or no output is a float array; if `where` does not fit `params`; if weights or
        gradients are not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[1.0], [2.0]])}  # one row and one output: the sign cancels
      >>> jp.scores.gauss_newton(lambda params, x: x @ params["w"], params, [jnp.array([[3.0, 1.0]])])["w"].tolist()
      [[9.0], [4.0]]

    References:
      Martens, Sutskever, Swersky, Estimating the Hessian by Back-propagating Curvature, 2012, arXiv:1206.6464.
    """
    given = [batch if isinstance(batch, tuple) else (batch,) for batch in batches_of((), batches)]
    chosen, leaves = prunable_leaves(params, where), jax.tree.leaves(params)
    position = {leaf: n for n, leaf in enumerate(i for i, x in enumerate(leaves) if is_array_leaf(x))}
    _, join = split_leaves((params, given[0]), is_array_leaf)
    key = jax.random.key(0) if key is None else key

    @jax.jit
    def added(total: list[Any], weights: list[Any], arrays: list[Any], key: jax.Array) -> list[jax.Array]:
        def signed(weights: list[Any]) -> jax.Array:
            now = list(arrays)
            for i, w in zip(chosen, weights, strict=True):
                now[position[i]] = w
            params, inputs = join(now)
            rows = None if row_weights is None else jnp.asarray(row_weights(*inputs))
            return _signed_sum(fn(params, *inputs), rows, key)

        grads = jax.grad(signed)(weights)
        return [a + jnp.square(g.astype(jnp.float32)) for a, g in zip(total, grads, strict=True)]

    weights = [jnp.asarray(leaves[i]) for i in chosen]
    _check_finite(params, "params", "have finite values", dict(zip(chosen, weights, strict=True)))
    total = [jnp.zeros(w.shape, jnp.float32) for w in weights]
    for b, batch in enumerate(given):
        arrays, _ = split_leaves((params, batch), is_array_leaf)
        total = added(total, weights, arrays, jax.random.fold_in(key, b))
        settled(total)
    _check_finite(
        params, "batches", "give finite gradients of the outputs", dict(zip(chosen, total, strict=True))
    )
    scores = [jnp.full(jnp.shape(x), jnp.inf, jnp.float32) if is_float_array(x) else x for x in leaves]
    for i, w, squared in zip(chosen, weights, total, strict=True):
        scores[i] = jnp.square(w.astype(jnp.float32)) * squared / len(given)
    return jax.tree.unflatten(jax.tree.structure(params), scores)


def _check_finite(params: PyTree, argument: str, what: str, values: dict[int, jax.Array]) -> None:
    """Raises a ValueError that names the first leaf whose values are not finite, unless they are traced."""
    for i, value in values.items():
        finite = jnp.isfinite(value).all()
        if not isinstance(finite, Tracer) and not finite:
            path = flatten_with_paths(params)[0][i]
            raise ValueError(f"`{argument}` must {what}, got NaN or infinite ones at {path!r}.")


def _signed_sum(outs: Any, rows: jax.Array | None, key: jax.Array) -> jax.Array:
    """The sum of all entries of the outputs under random signs."""
    total: Any = None
    for i, y in enumerate(jax.tree.leaves(outs)):
        if not jnp.issubdtype(jnp.result_type(y), jnp.floating):
            continue
        y = jnp.asarray(y, jnp.float32)
        signs = jax.random.rademacher(jax.random.fold_in(key, i), y.shape, jnp.float32)
        weights = None if rows is None else weights_of_entries(rows, y.shape)
        if weights is not None:
            y, signs = jnp.where(weights != 0, y, 0), signs * jnp.sqrt(weights)
        total = jnp.vdot(signs, y) + (0.0 if total is None else total)
    if total is None:
        raise ValueError("`fn` must return at least one float array, got none.")
    return total
