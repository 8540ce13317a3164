"""A plan of layers that are left out, and everything that follows from it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.files import write_whole
from jaxprune.jaxprs import as_abstract, is_array_leaf
from jaxprune.opt_state import flat_arrays, owners
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.inference.kept import small_shape
from jaxprune.surgery.inference.model import KeptAxes
from jaxprune.surgery.layers.bypass import LayerVerification, bypass, masked_error
from jaxprune.surgery.layers.composed import ComposedPlan, composed
from jaxprune.surgery.layers.depth import depths, layers_left
from jaxprune.surgery.layers.removed_leaves import without_leaves
from jaxprune.surgery.planning.dimensions import Dimension, Dimensions
from jaxprune.surgery.planning.full_tree import (
    and_measured,
    check_paths,
    check_tree,
    mask_tree,
    removed_text,
    shrink_tree,
)
from jaxprune.surgery.planning.optimizer import shrink_opt_state
from jaxprune.tables import shape_text, table_text

FORMAT = "jaxprune layer plan 1"
_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """Which layers are left out; made by `plan_layers`, or read with `LayerPlan.load`.

    Printing it shows a table of the parameters that become smaller or are removed.

    Attributes:
      removed: the names of the branches that are left out.
      shapes: path -> shape of the full parameter.
      kept: path -> a mask for each axis (bool, True = keep), or None where the whole axis is kept.
      gone: the paths of the parameters that nothing uses any more.
      tree: the full parameters, abstract.
      measured: how `jp.plan_to` met its target; not part of the saved file.
    """

    removed: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    kept: KeptAxes = field(repr=False)
    gone: frozenset[str] = field(repr=False)
    tree: PyTree = field(repr=False)
    measured: Any = field(default=None, repr=False)

    @property
    def small_shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of each parameter that is left."""
        return {
            path: small_shape(shape, self.kept[path])
            for path, shape in self.shapes.items()
            if path not in self.gone
        }

    @property
    def small_depth(self) -> dict[str, tuple[int, ...]]:
        """Stack of layers (`layers/*`, or the module of stacked leaves) -> the numbers of the layers left in it.

        Only stacks that lose a whole layer are named. Where all layers are alike, a model of as many layers can
        be built anew, and filled with the parameters of these.
        """
        return layers_left(self.shapes, self.kept, self.gone, self.removed)

    def dimensions(self) -> Dimensions:
        """The number of layers before and after, of each stack in `small_depth`, as `Plan.dimensions` has sizes."""
        found = depths(self.shapes, self.kept, self.gone, self.removed)
        return Dimensions({}, {stack: Dimension((n,), (len(left),)) for stack, (n, left) in found.items()})

    def shrink(self, params: PyTree) -> PyTree:
        """Removes the layers from a tree like the parameters: values, gradients, averages, masks or scores.

        Parameters that nothing uses any more are removed; stacked parameters lose their slices. A dict loses the
        key, and a dict that becomes empty is removed too. In a list, a tuple, an NNX State and an Equinox module
        the place is kept and contains None, so that all other paths remain as they were.

        Args:
          params: tree with the paths and shapes that the plan was made for. Axes of size 1 may stand for axes
            that broadcast, and scalars for whole leaves, as in masks.

        Returns:
          A tree with the leaves that are left.

        Raises:
          ValueError: a path or a shape is not the plan's.
        """
        small = shrink_tree(params, self.shapes, self.kept)
        paths, _, _ = flatten_with_paths(params)
        return without_leaves(small, {i for i, path in enumerate(paths) if path in self.gone})

    def masks(self, params: PyTree) -> PyTree:
        """The plan as masks on the full parameters: removed entries are False.

        Args:
          params: tree with the paths and shapes that the plan was made for.

        Returns:
          Tree like `params` of bool arrays that broadcast to their parameters (True = keep), or the scalar
          `True` where a parameter is kept whole.
        """
        check_paths(params, self.shapes)
        return mask_tree(params, self._mask)

    def compact(self, fn: Callable) -> Callable:
        """The small function: computes on `shrink(params)` what `fn` computes without the layers.

        It has the signature of `fn`, takes inputs of any shape at which `fn` has these branches (each new shape
        is traced anew, so call it inside `jax.jit`), and can be differentiated, vmapped and scanned. A layer
        that lies partly inside a function with a derivative of its own is differentiated as it is computed.

        Args:
          fn: the function that was analysed.

        Returns:
          Function `small_fn(small_params, *inputs)`.

        Raises:
          ValueError: when it is called, if `fn` has not the branches of the plan, or `small_params` not the
            parameters that are left.
        """
        return bypass(fn, self.tree, self.removed, self.small_shapes, self.gone)

    def shrink_opt_state(self, opt_state: PyTree, min_dim_size_to_factor: int = 128) -> PyTree:
        """Removes the layers from an optimizer state.

        Args:
          opt_state: the state of any optax optimizer of the full parameters, as in `Plan.shrink_opt_state`.
          min_dim_size_to_factor: Adafactor's argument of this name.

        Returns:
          The state for the small parameters.

        Raises:
          ValueError: the state has all weights in one row (`optax.flatten`), or an array that belongs to a
            parameter by its path but has a shape that can't be its own.
        """
        size = sum(map(math.prod, self.shapes.values()))
        if self.gone and flat_arrays(opt_state, owners(opt_state, list(self.shapes)), size):
            raise ValueError(
                "the optimizer state has all weights in one row, from which whole parameters can't be removed: "
                "start it anew with tx.init(plan.shrink(params))."
            )
        small = shrink_opt_state(opt_state, self.shapes, self.kept, min_dim_size_to_factor)
        found = owners(small, list(self.shapes))
        gone = {i for i, owner in enumerate(found) if owner is not None and owner.path in self.gone}
        return without_leaves(small, gone)

    def verify(
        self, fn: Callable, params: PyTree, *inputs: Any, tolerance: float = _TOLERANCE
    ) -> LayerVerification:
        """Compares the small function with the full one in which zeros stand for what the branches give.

        Args:
          fn: the function that was analysed.
          params: the full parameters.
          *inputs: concrete inputs.
          tolerance: largest error that counts as equal, relative to the largest output.

        Returns:
          The report; `report.ok` says whether the small function computes what it must.

        Raises:
          ValueError: a path or a shape of `params` is not the plan's.
        """
        small = self.compact(fn)(self.shrink(params), *inputs)
        error = masked_error(fn, params, inputs, self.removed, jax.tree.leaves(small))
        return LayerVerification(error, tolerance)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan as a JSON file. A file that is there is replaced once the new one is whole.

        Args:
          path: the file.
        """
        slices = {
            name: np.flatnonzero(~masks[0]).tolist()
            for name, masks in self.kept.items()
            if masks and masks[0] is not None
        }
        content = {
            "format": FORMAT,
            "removed": list(self.removed),
            "gone": sorted(self.gone),
            "slices": slices,
            "shapes": {name: [int(n) for n in shape] for name, shape in self.shapes.items()},
        }
        write_whole(path, lambda file: file.write(json.dumps(content, indent=1).encode()))

    @staticmethod
    def load(path: str | os.PathLike, params: PyTree) -> LayerPlan:
        """Reads a plan that `save` wrote.

        Args:
          path: the file.
          params: the full parameters, or `jax.ShapeDtypeStruct`s of them (`jax.eval_shape` of the model's
            init): they tell where the removed leaves had their places.

        Returns:
          The plan.

        Raises:
          ValueError: the file is no plan, or not one for `params`.
        """
        try:
            with open(path, "rb") as file:
                content = json.loads(file.read())
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}")
            shapes = {name: tuple(map(int, shape)) for name, shape in content["shapes"].items()}
            kept: dict[str, tuple[Any, ...]] = {name: (None,) * len(s) for name, s in shapes.items()}
            for name, places in content["slices"].items():
                mask = np.ones(shapes[name][0], bool)
                mask[np.asarray(places, int)] = False
                kept[name] = (mask, *kept[name][1:])
            removed, gone = tuple(map(str, content["removed"])), frozenset(map(str, content["gone"]))
        except OSError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{os.fspath(path)!r} is not a {FORMAT!r} file: {error}.") from None
        tree = jax.tree.map(lambda x: as_abstract(x) if is_array_leaf(x) else x, params)
        plan = LayerPlan(removed, shapes, kept, gone, tree)
        plan.check(params)
        return plan

    def then(self, later: Any) -> ComposedPlan:
        """This plan followed by one for the small parameters: of widths, or of more layers.

        Args:
          later: a `Plan` or a `LayerPlan` made for `plan.compact(fn)` and the parameters that `shrink` gives.

        Returns:
          The composed plan, which is used as both are.

        Raises:
          ValueError: `later` was made for other parameters.
        """
        return composed(self, later)

    def after(self, first: Any) -> ComposedPlan:
        """The plan of widths `first`, followed by this one: what `first.then(plan)` gives."""
        return composed(first, self)

    def check(self, params: PyTree) -> None:
        """Raises a ValueError for parameters whose paths or shapes are not the plan's."""
        check_tree(params, self.shapes)

    def __str__(self) -> str:
        small = self.small_shapes
        rows = [
            (path, shape_text(shape), "removed" if path in self.gone else shape_text(small[path]))
            for path, shape in self.shapes.items()
            if path in self.gone or small[path] != shape
        ]
        table = table_text(("parameter", "shape", "small shape"), rows)
        layers = f"left out: {', '.join(self.removed) or 'nothing'}"
        text = f"{layers}\n\n{table}\n\n{removed_text(self.shapes, small)}"
        return and_measured(text, self.measured)

    __repr__ = __str__

    def _mask(self, path: str) -> Any:
        shape = self.shapes[path]
        if path in self.gone:
            return jnp.zeros((1,) * len(shape), bool)
        if not shape or self.kept[path][0] is None:
            return True
        return jnp.asarray(self.kept[path][0]).reshape(-1, *[1] * (len(shape) - 1))
