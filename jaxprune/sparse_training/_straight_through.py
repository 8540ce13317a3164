"""The straight-through estimator: the parameters at which methods with dense weights compute their loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.masking import apply_masks
from jaxprune.params import PyTree, flatten_with_paths, is_float_array, is_kept_whole, mask_leaves


def straight_through(params: PyTree, masks: PyTree, backward: PyTree | None = None) -> PyTree:
    """Masked parameters whose gradient also reaches pruned weights: `where(m, w, 0)`, `dL/dw = dL/d(m w)`.

    The gradient is that of the loss at the masked parameters, as if the mask were the identity. A pruned weight
    thus gets the gradient that it would have if it were kept with value 0.

    Args:
      params: pytree of arrays.
      masks: the masks of these parameters, True = used in the forward pass.
      backward: masks of the weights that get a gradient; None for all of them.

    Returns:
      Tree like `params`.

    Raises:
      ValueError, TypeError: as `apply_masks` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> masks = {"w": jnp.array([True, False])}
      >>> def loss(params):
      ...     w = jp.sparse_training.straight_through(params, masks)["w"]
      ...     return ((w - 1) ** 2).sum()
      >>> jax.value_and_grad(loss)({"w": jnp.array([3.0, 5.0])})
      (Array(5., dtype=float32), {'w': Array([ 4., -2.], dtype=float32)})

    References:
      Bengio, Leonard, Courville, Estimating or Propagating Gradients Through Stochastic Neurons for
      Conditional Computation, 2013, arXiv:1308.3432.
    """
    _, leaves, treedef = flatten_with_paths(params)
    used = jax.tree.leaves(apply_masks(params, masks))
    learning = [True] * len(leaves) if backward is None else mask_leaves(params, backward, "backward")
    kept = mask_leaves(params, masks)
    passed = [
        u if (is_kept_whole(m) and is_kept_whole(b)) or not is_float_array(w) else _value(u, w, b)
        for w, u, m, b in zip(leaves, used, kept, learning, strict=True)
    ]
    return jax.tree.unflatten(treedef, passed)


def _value_jvp(primals, tangents):
    used, _, learning = primals
    _, tangent, _ = tangents
    # where() and not a product: an infinite tangent under a mask would become NaN.
    return used, jnp.where(learning, tangent, jnp.zeros((), used.dtype))


_value: Any = jax.custom_jvp(lambda used, w, learning: used)
_value.defjvp(_value_jvp)
