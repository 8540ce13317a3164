"""FLOPs of the products that each weight takes part in, from the jaxpr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxprune.params import PyTree


def weight_flops(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> PyTree:
    """Floating-point operations (two a multiply-add) of the contractions and convolutions by each parameter.

    A product counts for the parameter that its operand is made of (cast, transposed, reshaped, sliced ...); one
    made of several counts for each by its size. Products of two activations count for none. The body of a
    loop of known length counts that many times, of an unknown length once; a conditional as its dearest branch.

    Args:
      fn: `fn(params, *inputs)`.
      params: pytree of arrays (or `jax.ShapeDtypeStruct`s).
      *inputs: pytrees of arrays (or shapes); FLOPs are for these batch sizes.

    Returns:
      Tree like `params` of Python ints, 0 for what is in no product.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
      >>> jp.allocate.weight_flops(lambda p, x: x @ p["kernel"] + p["bias"], params, jnp.ones((1, 8)))
      {'bias': 0, 'kernel': 64}
    """
    raise NotImplementedError
