"""A model as one jaxpr: parameters and inputs flat, dead equations gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, JaxprEqn

from jaxprune.jax_compat import constants_as_inputs, user_frames
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
    """Traces `fn(params, *inputs)`; leaves that are no arrays (functions, strings, bools) stay as they are.

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
    """Whether a leaf is traced: arrays, abstract arrays and plain numbers, but no Python bool."""
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


_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def shape_of(atom: Any) -> tuple[int, ...]:
    """Shape of a variable or literal of a jaxpr; tokens and the like have none."""
    return getattr(atom.aval, "shape", ())


def contracted_dims(eqn: JaxprEqn) -> tuple[tuple[int, ...], int]:
    """The dimensions of the left operand that a product contracts, and leading ones of its result to leave out.

    A ragged product over rows counts each row once, with the matrix of its group; one that contracts the ragged
    dimension has a result for each group, of which each row is in one.
    """
    if eqn.primitive.name == "dot_general":
        return tuple(eqn.params["dimension_numbers"][0][0]), 0
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contract = tuple(numbers.dot_dimension_numbers[0][0])
    return contract, int(bool(set(contract) & set(numbers.lhs_ragged_dimensions)))


class Source:
    """The source line of an equation, looked up only when it is printed.

    Equations inside JAX's own jitted functions have none: theirs is the line of the call.
    """

    __slots__ = ("_caller", "_eqn")

    def __init__(self, eqn: JaxprEqn, caller: Source | None = None):
        self._eqn = eqn
        self._caller = caller

    def __str__(self) -> str:
        return source_of(self._eqn) or str(self._caller or "")


def source_of(eqn: JaxprEqn) -> str:
    """`file.py:line` of an equation, in the user's own file where there is one, with its module scope."""
    frames = [f for f in user_frames(eqn) if not f.file_name.startswith(_OURS)]
    own = [f for f in frames if not any(library in f.file_name for library in _LIBRARIES)]
    scope = str(eqn.source_info.name_stack)
    place = next((f"{os.path.basename(f.file_name)}:{f.start_line}" for f in own or frames), "")
    return f"{place} ({scope})" if scope and place else place or scope
