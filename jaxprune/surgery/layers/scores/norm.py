"""Norm of a branch's parameters."""

from __future__ import annotations

import jax.numpy as jnp

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths, is_float_array
from jaxprune.surgery.layers.branches import Branches


def branch_norms(branches: Branches, params: PyTree) -> dict[str, float]:
    r"""Euclidean norm of the parameters that are removed with a branch: \( s = \sqrt{\sum_w w^2} \).

    A step of a scan counts its slices, and weights that other branches share do not count.

    Args:
      branches: what `find_branches` found.
      params: the parameters that were analysed, as arrays.

    Returns:
      Branch name -> score, larger = keep.

    Raises:
      ValueError: `params` is not what was analysed.
      TypeError: `params` is traced or abstract.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"f": 3 * jnp.eye(2), "g": jnp.ones((2, 2)), "head": jnp.ones((2, 1))}
      >>> def fn(p, x):
      ...     x = x + jnp.tanh(x @ p["f"])
      ...     return (x + jnp.tanh(x @ p["g"])) @ p["head"]
      >>> jp.surgery.branch_norms(jp.find_branches(fn, params, jnp.ones((1, 2))), params)
      {'f': 4.2426..., 'g': 2.0}
    """
    branches.check_arrays(params, "branch_norms")
    paths, leaves, _ = flatten_with_paths(params)
    squares: dict[str, jnp.ndarray] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        if is_array_leaf(leaf) and is_float_array(leaf):
            squares[path] = jnp.square(jnp.asarray(leaf, jnp.float32))
    return {
        branch.name: float(
            jnp.sqrt(
                sum(
                    (
                        squares[path][step].sum() if branch.steps else squares[path].sum()
                        for path in branch.params
                        if path in squares
                        for step in ([s for _, s in branch.steps] or [0])
                    ),
                    jnp.zeros(()),
                )
            )
        )
        for branch in branches
    }
