"""A plan: the units that each axis of each parameter keeps, and everything that follows from it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.deprecated import warn_renamed
from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.surgery.evaluation.compact import compact
from jaxprune.surgery.evaluation.folding import fold_constants
from jaxprune.surgery.evaluation.verify import Verification, verify
from jaxprune.surgery.inference.model import KeptAxes, State
from jaxprune.surgery.planning.optimizer import shrink_opt_state
from jaxprune.surgery.planning.plan_file import read_plan, write_plan
from jaxprune.surgery.slicing import shrink_leaf
from jaxprune.tables import Row, folded, shape_text, table_text, times


@dataclass(frozen=True, eq=False)
class Plan:
    """Which units of each parameter axis are kept; made by `plan_removal`, or read with `Plan.load`.

    Printing it shows a table of the parameters that get smaller.

    Attributes:
      shapes: path -> shape of the full parameter.
      kept: path -> a mask for each axis (bool, True = keep), or None where the whole axis is kept.
      state: what `find_groups` was given for a state that goes round; not part of the saved file.
      inputs: shapes of the inputs that `find_groups` was given; not part of the saved file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kept: KeptAxes = field(repr=False)
    state: State | None = field(default=None, repr=False)
    inputs: tuple[Any, ...] | None = field(default=None, repr=False)

    @property
    def small_shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of the small parameter: the sizes to build the small model with."""
        return {
            path: tuple(n if m is None else int(m.sum()) for n, m in zip(shape, self.kept[path], strict=True))
            for path, shape in self.shapes.items()
        }

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """The old name of `small_shapes`."""
        warn_renamed("`Plan.widths`", "`Plan.small_shapes`")
        return self.small_shapes

    def shrink(self, params: PyTree) -> PyTree:
        """Removes the units from a tree like the parameters: values, gradients, averages, masks or scores.

        Args:
          params: tree with the paths and shapes that the plan was made for. Axes of size 1 may stand for
            axes that broadcast, and scalars for whole leaves, as in masks.

        Returns:
          A tree like `params` of smaller arrays.

        Raises:
          ValueError: a path or a shape is not the plan's.
        """
        paths, leaves, treedef = flatten_with_paths(params)
        self._check_paths(paths, leaves)
        small = [
            shrink_leaf(path, leaf, self.shapes[path], self.kept[path]) if is_array_leaf(leaf) else leaf
            for path, leaf in zip(paths, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, small)

    def masks(self, params: PyTree) -> PyTree:
        """The plan as masks on the full parameters.

        Args:
          params: tree with the paths and shapes that the plan was made for.

        Returns:
          Tree like `params` of bool arrays that broadcast to their parameters (True = keep), or the scalar
          `True` where a parameter is kept whole.
        """
        paths, leaves, treedef = flatten_with_paths(params)
        return jax.tree.unflatten(
            treedef,
            [
                _on_device(self.mask(path)) if is_array_leaf(leaf) else leaf
                for path, leaf in zip(paths, leaves, strict=True)
            ],
        )

    def mask(self, path: str) -> Any:
        """Mask of one parameter: a numpy array that broadcasts to it, True = keep, or the scalar `True`."""
        mask: Any = True
        for dim, keep in enumerate(self.kept[path]):
            if keep is not None:
                shape = [1] * len(self.shapes[path])
                shape[dim] = -1
                mask = mask & keep.reshape(shape)
        return mask

    def compact(self, fn: Callable) -> Callable:
        """The small function: computes on `shrink(params)` what `fn` computes with the units removed.

        It has the signature of `fn`, takes inputs of any shape that `fn` takes (each new shape is traced
        and analysed anew, so call it inside `jax.jit`), and can be differentiated, vmapped and scanned.
        Removed means that every sum over units leaves them out, every maximum sees minus infinity.

        Args:
          fn: the function that was analysed.

        Returns:
          Function `small_fn(small_params, *inputs)`.
        """
        return compact(fn, self.shapes, self.kept, self.state)

    def fold_constants(self, fn: Callable, params: PyTree, *inputs: Any, tolerance: float = 1e-5) -> PyTree:
        r"""Moves what removed units contribute as constants into the biases that follow.

        A unit whose incoming weights are zero, but not its bias (or its BatchNorm's), is the constant
        \( c = f(b) \): a channel mask leaves such units behind. It adds \( c \, W_\text{out} \) to all that
        sums over it. This gives parameters whose small function computes what `fn` computes on `params` as
        they are, where `shrink` alone would leave these constants out.

        `fn` is run once. What the small function lacks is followed from each sum over removed units, through
        whatever is linear, to where a parameter is added or subtracted (a bias, a BatchNorm's running mean),
        which takes it. Constant means: the same for all samples and positions of `inputs`, so pass some that
        tell them apart. Units that contribute nothing need no bias.

        Args:
          fn: the function that was analysed.
          params: the full parameters, with weights pruned to zero but not removed.
          *inputs: concrete inputs.
          tolerance: largest error that counts as equal, relative to the largest entry of each sum.

        Returns:
          Full parameters to pass to `shrink`; only biases differ from `params`.

        Raises:
          ValueError: a removed unit is no constant, or contributes to something that no bias is added to
            before it goes on (or only to a part of it, as in a zero-padded convolution), or the bias has
            other uses. The message names the equation.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import jaxprune as jp
          >>> params = {"up": jnp.array([[1.0, 0.0]]), "b1": jnp.array([0.0, 2.0]),
          ...           "down": jnp.array([[1.0], [3.0]]), "b2": jnp.array([1.0])}
          >>> def mlp(p, x):
          ...     return jax.nn.relu(x @ p["up"] + p["b1"]) @ p["down"] + p["b2"]
          >>> x = jnp.array([[1.0], [4.0]])
          >>> groups = jp.find_groups(mlp, params, x)
          >>> plan = jp.surgery.plan_units(groups, {"b1[0]": [True, False]})
          >>> small = plan.shrink(plan.fold_constants(mlp, params, x))
          >>> small["b2"], plan.compact(mlp)(small, x).ravel(), mlp(params, x).ravel()
          (Array([7.], dtype=float32), Array([ 8., 11.], dtype=float32), Array([ 8., 11.], dtype=float32))
        """
        self.check(params)
        return fold_constants(fn, params, inputs, self.kept, self.state, tolerance)

    def shrink_opt_state(self, opt_state: PyTree, min_dim_size_to_factor: int = 128) -> PyTree:
        """Removes the units from an optimizer state.

        Args:
          opt_state: the state of any optax optimizer of the full parameters. What lies at a parameter's place in
            a tree like the parameters and has its shape is sliced, also with axes before it (L-BFGS), with all
            weights in one row (`optax.flatten`), past the holes of `optax.partition` and `optax.masked`; and so
            are Adafactor's factored moments and SM3's statistics of each axis.
          min_dim_size_to_factor: Adafactor's argument of this name: parameters that get too small for it
            have their factored moments multiplied out.

        Returns:
          The state for the small parameters.

        Raises:
          ValueError: an array belongs to a parameter by its path but has a shape that can't be its own;
            GaLore's moments, whose entries belong to no weight.
        """
        return shrink_opt_state(opt_state, self.shapes, self.kept, min_dim_size_to_factor)

    def verify(
        self, fn: Callable, params: PyTree, *inputs: Any, tolerance: float | None = None
    ) -> Verification:
        """Runs the small function against two oracles on concrete parameters.

        The masked oracle is the full function with every reduction across units at its identity for removed
        ones. The zeroed oracle is `fn` itself on `apply_masks(params, plan.masks(params))`: it shares nothing
        with the analysis, and it may differ where zeroing parameters is not the same as removing units (a
        softmax over units, a two-pass variance). The report then names these reductions and their lines, and
        `ok` means that masking them, and no others, makes the original function equal to the small one. An
        output that is NaN on either side is never equal.

        Args:
          fn: the function that was analysed.
          params: the full parameters.
          *inputs: concrete inputs.
          tolerance: largest error that counts as equal, relative to the largest output. By default 1e-4, or
            8 roundings of the narrowest float that the function computes with (0.06 for bfloat16).

        Returns:
          The report; `report.ok` says whether the small function computes what it must.
        """
        self.check(params)
        masks = self.masks(params)
        return verify(fn, params, inputs, self.kept, self.state, self.shrink, masks, tolerance)

    def then(self, later: Any) -> Any:
        """This plan followed by a plan for the small parameters, as one plan for the full ones.

        Args:
          later: a plan made for the parameters that `shrink` of this plan gives; one of layers gives a
            `ComposedPlan`.

        Returns:
          The composed plan.

        Raises:
          ValueError: `later` was made for other shapes.
        """
        if not isinstance(later, Plan):
            return later.after(self)
        if dict(later.shapes) != self.small_shapes:
            raise ValueError(
                "`later` must be a plan for the small parameters of this plan; its shapes differ."
            )
        kept = {
            path: tuple(_compose(a, b) for a, b in zip(masks, later.kept[path], strict=True))
            for path, masks in self.kept.items()
        }
        return Plan(self.shapes, kept, self.state, self.inputs)

    def check(self, params: PyTree) -> None:
        """Raises a ValueError for parameters whose paths or shapes are not the plan's."""
        paths, leaves, _ = flatten_with_paths(params)
        self._check_paths(paths, leaves)
        for path, leaf in zip(paths, leaves, strict=True):
            if is_array_leaf(leaf) and np.shape(leaf) != self.shapes[path]:
                raise ValueError(
                    f"{path!r} must have shape {self.shapes[path]}, as in the plan, got {np.shape(leaf)}."
                )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan as a plain `.npz` file: a JSON header and bool arrays, no pickle.

        A file that is there is replaced once the new one is whole.

        Args:
          path: the file.

        Raises:
          ValueError: the masks don't fit the shapes.
        """
        write_plan(path, self.shapes, self.kept)

    @staticmethod
    def load(path: str | os.PathLike, state: State | None = None) -> Plan:
        """Reads a plan that `save` wrote. It runs nothing that the file holds, and reads no more than its size.

        Args:
          path: the file.
          state: as in `find_groups`, where the plan was made with it.

        Returns:
          The plan.

        Raises:
          ValueError: the file is no plan, is damaged or of a newer format, or its masks don't fit its shapes.
            The message names the file.
        """
        return Plan(*read_plan(path), state)

    def __str__(self) -> str:
        small = self.small_shapes
        changed = [(path, shape, small[path]) for path, shape in self.shapes.items() if small[path] != shape]
        rows = folded(Row((path,), (shape_text(old), shape_text(new))) for path, old, new in changed)
        cells = [(times(row.paths[0], count), *row.cells) for row, count in rows]
        before, after = (sum(map(math.prod, shapes.values())) for shapes in (self.shapes, small))
        share = 1 - after / max(before, 1)
        table = table_text(("parameter", "shape", "small shape"), cells)
        return f"{table}\n\n{before:,} -> {after:,} parameters ({share:.1%} removed)"

    __repr__ = __str__

    def _check_paths(self, paths: list[str], leaves: list[Any]) -> None:
        missing = sorted(self.shapes.keys() - set(paths))
        arrays = [path for path, leaf in zip(paths, leaves, strict=True) if is_array_leaf(leaf)]
        extra = [path for path in arrays if path not in self.shapes]
        if missing or extra:
            which = f"lacks {missing[0]!r}" if missing else f"has {extra[0]!r}, which the plan does not know"
            raise ValueError(f"`params` is not what the plan was made for: it {which}.")


def _on_device(mask: Any) -> Any:
    return True if mask is True else jnp.asarray(mask)


def _compose(first: np.ndarray | None, later: np.ndarray | None) -> np.ndarray | None:
    if first is None or later is None:
        return later if first is None else first
    out = first.copy()
    out[first] = later
    return out
