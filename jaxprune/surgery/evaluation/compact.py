"""The small function of a plan."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs import Traced, as_abstract, is_array_leaf
from jaxprune.jaxprs.per_signature import per_signature
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.evaluation.interpreter import Small, evaluate
from jaxprune.surgery.inference.kept import small_shape
from jaxprune.surgery.inference.model import KeptAxes, Model, State, analyse, keep_of


def compact(
    fn: Callable, shapes: Mapping[str, tuple[int, ...]], kept: KeptAxes, state: State | None = None
) -> Callable:
    """Makes the function of the small parameters that computes what `fn` computes with the units removed."""

    @per_signature
    def analysed(full: PyTree, inputs: tuple[Any, ...]) -> tuple[Traced, tuple[Model, Small]]:
        model = analyse(fn, full, inputs, state)
        return model.traced, (model, Small(keep_of(model, kept)))

    @functools.wraps(fn)
    def small_fn(params: PyTree, *inputs: Any) -> Any:
        _, (model, small) = analysed(full_params(params, shapes, kept), inputs)
        return run(model, small, params, inputs)

    return small_fn


def run(model: Model, mode: Small, params: PyTree, inputs: tuple[Any, ...]) -> Any:
    """Evaluates a model in a mode on parameters and inputs."""
    arrays = [jnp.asarray(x) for x in jax.tree.leaves((params, inputs)) if is_array_leaf(x)]
    return jax.tree.unflatten(
        model.traced.out_tree, evaluate(model.frame, [*model.traced.consts, *arrays], mode)
    )


def full_params(params: PyTree, shapes: Mapping[str, tuple[int, ...]], kept: KeptAxes) -> PyTree:
    """The tree of the small parameters with abstract leaves of the full shapes.

    Raises:
      ValueError: if a leaf is not in the plan, or its shape differs from the small shape in the plan.
    """
    paths, leaves, treedef = flatten_with_paths(params)
    full = []
    for path, leaf in zip(paths, leaves, strict=True):
        if not is_array_leaf(leaf):
            full.append(leaf)
            continue
        if path not in shapes:
            raise ValueError(f"`params` has {path!r}, which is not in the plan.")
        small = small_shape(shapes[path], kept[path])
        if np.shape(leaf) != small:
            hint = " Pass `plan.shrink(params)`." if np.shape(leaf) == shapes[path] else ""
            raise ValueError(f"{path!r} must have the small shape {small}, got {np.shape(leaf)}.{hint}")
        aval = as_abstract(leaf)
        full.append(jax.ShapeDtypeStruct(shapes[path], aval.dtype, weak_type=aval.weak_type))
    return jax.tree.unflatten(treedef, full)
