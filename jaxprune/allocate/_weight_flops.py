"""FLOPs of the products in which each weight takes part, from the jaxpr."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxprune.jaxprs import is_array_leaf, trace
from jaxprune.jaxprs.flops import flops_by_parameter
from jaxprune.params import PyTree, flatten_with_paths


def weight_flops(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> PyTree:
    """Floating-point operations (two per multiply-add) of the contractions and convolutions with each parameter.

    A product counts for the parameter from which its operand is made (cast, transposed, reshaped, sliced ...). If
    the operand is made from several parameters, each counts in proportion to its size. Products of two
    activations count for none. The body of a loop counts as often as the loop runs, or once if that is unknown. A
    conditional counts as its most expensive branch, a linear solver as its most expensive part. Operations
    inside other calls (a Pallas kernel, `shard_map`) are not counted.

    Args:
      fn: `fn(params, *inputs)`.
      params: pytree of arrays (or `jax.ShapeDtypeStruct`s).
      *inputs: pytrees of arrays (or shapes); FLOPs are for these batch sizes.

    Returns:
      Tree like `params` of Python ints, 0 for parameters in no product.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
      >>> jp.allocate.weight_flops(lambda p, x: x @ p["kernel"] + p["bias"], params, jnp.ones((1, 8)))
      {'bias': 0, 'kernel': 64}
    """
    flops = iter(flops_by_parameter(trace(fn, params, inputs)))
    _, leaves, treedef = flatten_with_paths(params)
    counts = [round(next(flops)) if is_array_leaf(leaf) else 0 for leaf in leaves]
    return jax.tree.unflatten(treedef, counts)
