"""Trees like the full parameters that a plan was made for: checked, sliced and masked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.inference.model import KeptAxes
from jaxprune.surgery.slicing import shrink_leaf

Shapes = Mapping[str, tuple[int, ...]]


def check_paths(params: PyTree, shapes: Shapes) -> None:
    """Raises ValueError if the paths of the arrays differ from the plan."""
    paths, leaves, _ = flatten_with_paths(params)
    missing = sorted(shapes.keys() - set(paths))
    arrays = [path for path, leaf in zip(paths, leaves, strict=True) if is_array_leaf(leaf)]
    extra = [path for path in arrays if path not in shapes]
    if missing or extra:
        which = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which is not in the plan"
        raise ValueError(f"`params` is not what the plan was made for: it {which}.")


def check_tree(params: PyTree, shapes: Shapes) -> None:
    """Raises ValueError if the paths or shapes of the parameters differ from the plan."""
    check_paths(params, shapes)
    paths, leaves, _ = flatten_with_paths(params)
    for path, leaf in zip(paths, leaves, strict=True):
        if is_array_leaf(leaf) and np.shape(leaf) != shapes[path]:
            raise ValueError(
                f"{path!r} must have shape {shapes[path]}, as in the plan, got {np.shape(leaf)}."
            )


def shrink_tree(params: PyTree, shapes: Shapes, kept: KeptAxes) -> PyTree:
    """The tree with each array sliced to what its axes keep."""
    check_paths(params, shapes)
    return _of_arrays(params, lambda path, leaf: shrink_leaf(path, leaf, shapes[path], kept[path]))


def mask_tree(params: PyTree, mask: Callable[[str], Any]) -> PyTree:
    """The tree with the mask of its path in place of each array."""
    return _of_arrays(params, lambda path, leaf: mask(path))


def removed_text(shapes: Shapes, small: Shapes) -> str:
    """How many parameters a plan leaves."""
    before, after = (sum(map(math.prod, of.values())) for of in (shapes, small))
    return f"{before:,} -> {after:,} parameters ({1 - after / max(before, 1):.1%} removed)"


def and_measured(text: str, measured: Any) -> str:
    """The text of a plan, and how it meets its target."""
    return text if measured is None else f"{text}\n\n{measured}"


def _of_arrays(params: PyTree, new: Callable[[str, Any], Any]) -> PyTree:
    paths, leaves, treedef = flatten_with_paths(params)
    pairs = zip(paths, leaves, strict=True)
    return jax.tree.unflatten(
        treedef, [new(path, leaf) if is_array_leaf(leaf) else leaf for path, leaf in pairs]
    )
