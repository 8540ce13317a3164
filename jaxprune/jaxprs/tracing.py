"""A model as one jaxpr with flat parameters and inputs, and without dead equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr

from jaxprune.jax_compat import constants_as_inputs
from jaxprune.params import PyTree, flatten_with_paths


class Traced(NamedTuple):
    """A function as a jaxpr over (constants, parameter arrays, input arrays)."""

    jaxpr: Jaxpr
    consts: list[Any]
    paths: list[str]  # of the parameter arrays, in order
    avals: list[Any]  # of the parameter arrays
    input_paths: list[str]
    out_tree: Any  # jax.tree_util.PyTreeDef

    @property
    def closes_over_tracers(self) -> bool:
        return any(isinstance(const, Tracer) for const in self.consts)


def trace(fn: Callable, params: PyTree, inputs: tuple[Any, ...]) -> Traced:
    """Traces `fn(params, *inputs)`; leaves that are not arrays (functions, strings, bools) are passed unchanged.

    Args:
      fn: function of a pytree of parameters and any number of input pytrees.
      params: pytree of arrays or `jax.ShapeDtypeStruct`s.
      inputs: tuple of pytrees of arrays or `jax.ShapeDtypeStruct`s.

    Returns:
      The traced function.
    """
    leaves, treedef = jax.tree.flatten((params, inputs))
    dynamic = [i for i, leaf in enumerate(leaves) if is_array_leaf(leaf)]

    def flat_fn(*arrays):
        full = list(leaves)
        for i, array in zip(dynamic, arrays, strict=True):
            full[i] = array
        params, inputs = jax.tree.unflatten(treedef, full)
        return fn(params, *inputs)

    abstract = [as_abstract(leaves[i]) for i in dynamic]
    closed, out_shape = jax.make_jaxpr(flat_fn, return_shape=True)(*abstract)
    paths, param_leaves, _ = flatten_with_paths(params)
    return Traced(
        constants_as_inputs(closed),
        list(closed.consts),
        [path for path, leaf in zip(paths, param_leaves, strict=True) if is_array_leaf(leaf)],
        [as_abstract(leaf) for leaf in param_leaves if is_array_leaf(leaf)],
        [
            f"input {i} {path}".rstrip()
            for i, tree in enumerate(inputs)
            for path, leaf in zip(*flatten_with_paths(tree)[:2], strict=True)
            if is_array_leaf(leaf)
        ],
        jax.tree.structure(out_shape),
    )


def is_array_leaf(leaf: Any) -> bool:
    """Whether a leaf is traced: arrays, abstract arrays and plain numbers are, Python bools are not."""
    if isinstance(leaf, (bool, str)):
        return False
    return (hasattr(leaf, "shape") and hasattr(leaf, "dtype")) or isinstance(leaf, (int, float, complex))


def as_abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array leaf."""
    if isinstance(leaf, (int, float, complex)) and not isinstance(leaf, np.generic):
        aval = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=True)
    return jax.ShapeDtypeStruct(
        leaf.shape,
        jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True),
        weak_type=getattr(leaf, "weak_type", False) and not isinstance(leaf, np.ndarray),
    )
