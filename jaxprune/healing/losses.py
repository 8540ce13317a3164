"""How far the outputs of a student are from those of its teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxprune.params import PyTree, flatten_with_paths, is_float_array

Loss = Literal["mse", "kl"] | Callable[[Any, Any, Any], Any]


def loss_function(loss: Loss, temperature: float) -> Callable[[Any, Any, Any], Any]:
    """(student's outputs, teacher's outputs, inputs) -> loss, of a name or of a function."""
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
        raise ValueError(f"`temperature` must be a positive number, got {temperature!r}.")
    if loss != "kl" and temperature != 1:
        raise ValueError(f"`temperature` is that of loss='kl', got {temperature!r} with loss={loss!r}.")
    if callable(loss):
        return loss
    if loss == "mse":
        return mean_squared_error
    if loss == "kl":
        return lambda student, teacher, inputs: kl_divergence(student, teacher, temperature)
    raise ValueError(f"`loss` must be 'mse', 'kl' or a function of (student, teacher, inputs), got {loss!r}.")


def mean_squared_error(student: PyTree, teacher: PyTree, inputs: Any = None) -> jax.Array:
    """The mean of the squared differences over all entries of all float outputs, in float32 at least.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.healing.losses import mean_squared_error
      >>> mean_squared_error([jnp.zeros(2), jnp.ones(1)], [jnp.ones(2), jnp.ones(1)]).round(4)
      Array(0.6667, dtype=float32)
    """
    del inputs
    pairs = _pairs(student, teacher)
    total = sum(jnp.square(a - b).sum() for a, b in pairs)
    return total / max(sum(a.size for a, _ in pairs), 1)


def kl_divergence(student: PyTree, teacher: PyTree, temperature: float = 1.0) -> jax.Array:
    r"""$T^2 \, KL(\text{softmax}(t / T) \,\|\, \text{softmax}(s / T))$ over the last axis, the mean over all rows."""
    total, rows = jnp.zeros(()), 0
    for s, t in _pairs(student, teacher):
        log_p, log_q = (jax.nn.log_softmax(x / temperature) for x in (t, s))
        p = jnp.exp(log_p)
        # A class that the teacher rules out (logit -inf) adds nothing.
        total = (
            total + jnp.where(p > 0, p * (jnp.where(p > 0, log_p, 0) - jnp.where(p > 0, log_q, 0)), 0).sum()
        )
        rows += s.size // max(s.shape[-1], 1)
    return temperature**2 * total / max(rows, 1)


def check_outputs(loss: Loss, student: PyTree, teacher: PyTree) -> None:
    """Raises ValueError unless a named loss can compare these (abstract) outputs."""
    if callable(loss):
        return
    (paths, ours, _), (others, theirs, _) = flatten_with_paths(student), flatten_with_paths(teacher)
    remedy = (
        "Pass functions that return what is to be compared (the model in evaluation mode, without new "
        "statistics), or a function as `loss`."
    )
    if paths != others:
        raise ValueError(f"outputs of `small_fn` and `fn` differ: {paths} and {others}. {remedy}")
    for path, a, b in zip(paths, ours, theirs, strict=True):
        if a.shape != b.shape:
            raise ValueError(
                f"`small_fn` must give outputs of the shapes of `fn`, got {a.shape} and {b.shape} at {path!r}. {remedy}"
            )
        if loss == "kl" and is_float_array(a) and not a.shape:
            raise ValueError(
                f"loss='kl' compares logits along the last axis, got a scalar at {path!r}. {remedy}"
            )
    if not any(map(is_float_array, ours)):
        raise ValueError(f"`fn` must have an output of a floating-point dtype to compare, got none. {remedy}")


def _pairs(student: PyTree, teacher: PyTree) -> list[tuple[jax.Array, jax.Array]]:
    """The float outputs of both, in float32 at least."""
    pairs = zip(jax.tree.leaves(student), jax.tree.leaves(teacher), strict=True)
    return [(_wide(a), _wide(b)) for a, b in pairs if is_float_array(a)]


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
