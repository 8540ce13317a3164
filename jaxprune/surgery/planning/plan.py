"""A plan: the units that each axis of each parameter keeps, and the functions that apply it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp

from jaxprune.deprecated import warn_renamed
from jaxprune.params import PyTree
from jaxprune.surgery.evaluation.compact import compact
from jaxprune.surgery.evaluation.folding import fold_constants
from jaxprune.surgery.evaluation.verify import Verification, verify
from jaxprune.surgery.inference.kept import composed_mask, small_shape
from jaxprune.surgery.inference.model import KeptAxes, State
from jaxprune.surgery.planning.dimensions import Dimensions, Factors, dimensions_of
from jaxprune.surgery.planning.full_tree import and_measured, check_tree, mask_tree, removed_text, shrink_tree
from jaxprune.surgery.planning.optimizer import shrink_opt_state
from jaxprune.surgery.planning.plan_file import read_plan, write_plan
from jaxprune.tables import Row, folded, shape_text, table_text, times


@dataclass(frozen=True, eq=False)
class Plan:
    """The units that each axis of each parameter keeps; made by `plan_removal`, or read with `Plan.load`.

    Printing it shows a table of the parameters that become smaller.

    Attributes:
      shapes: path -> shape of the full parameter.
      kept: path -> a mask for each axis (bool, True = keep), or None for an axis that keeps all its units.
      state: the `state` argument of `find_groups` for a recurrent state; not part of the saved file.
      inputs: shapes of the inputs that `find_groups` was given; not part of the saved file.
      factors: path -> for each axis the factors that it is made of; not part of the saved file.
      measured: how `jp.plan_to` met its target; not part of the saved file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kept: KeptAxes = field(repr=False)
    state: State | None = field(default=None, repr=False)
    inputs: tuple[Any, ...] | None = field(default=None, repr=False)
    factors: Mapping[str, Sequence[Factors | None]] | None = field(default=None, repr=False)
    measured: Any = field(default=None, repr=False)

    @property
    def small_shapes(self) -> dict[str, tuple[int, ...]]:
        """Path -> shape of the small parameter, for building the small model."""
        return {path: small_shape(shape, self.kept[path]) for path, shape in self.shapes.items()}

    def dimensions(self) -> Dimensions:
        """The sizes before and after, for the configuration of a model that is built anew.

        An axis that units can be removed from has its size as a product, in the order of its entries: 12 heads of 64
        are `(12, 64)`. All of it follows from the function; which name a configuration has for a size (`num_heads`,
        `mlp_dim`) does not. Where repeated layers keep different numbers, no configuration has one number for them:
        plan with `alike`. A plan that was read from a file only tells the axes that lose units, without factors.

        A rebuilt model gives the same outputs if it has these parameters and no other use of the sizes. An attention
        that divides by its head size, or a LayerNorm that divides by its width, has one: leave such groups out with
        `only` or `exclude`.

        Returns:
          The dimensions. Printing them shows a table in which repeated layers have one row.

        Example:
          >>> import jax, jax.numpy as jnp
          >>> import jaxprune as jp
          >>> params = {"up": jnp.array([[3.0, 1.0, 2.0]]), "down": jnp.array([[1.0], [1.0], [1.0]])}
          >>> mlp = lambda params, x: jax.nn.relu(x @ params["up"]) @ params["down"]
          >>> groups = jp.find_groups(mlp, params, jnp.ones((1, 1)))
          >>> dimensions = jp.plan_removal(groups, params, 0.3, budget="units").dimensions()
          >>> dimensions
          axis      before   after   the same in
          ...
          down[0]        3       2   up[1]
          >>> dimensions["up[1]"].new
          2
        """
        return dimensions_of(self.shapes, self.kept, self.factors)

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """The old name of `small_shapes`."""
        warn_renamed("`Plan.widths`", "`Plan.small_shapes`")
        return self.small_shapes

    def shrink(self, params: PyTree) -> PyTree:
        """Removes the units from a tree like the parameters: values, gradients, averages, masks or scores.

        Args:
          params: tree with the paths and shapes that the plan was made for. Arrays may also have axes of size 1
            that broadcast, and leaves may be scalars, as in masks.

        Returns:
          A tree like `params` of smaller arrays.

        Raises:
          ValueError: if a path or a shape differs from the plan.
        """
        return shrink_tree(params, self.shapes, self.kept)

    def masks(self, params: PyTree) -> PyTree:
        """The plan as masks on the full parameters.

        Args:
          params: tree with the paths and shapes that the plan was made for.

        Returns:
          Tree like `params` of bool arrays that broadcast to their parameters (True = keep), or the scalar
          `True` where a parameter is kept whole.
        """
        return mask_tree(params, lambda path: _on_device(self.mask(path)))

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
        """The small function: it computes on `shrink(params)` what `fn` computes with the units removed.

        The small function has the signature of `fn`, takes inputs of any shape that `fn` takes, and can be
        differentiated, vmapped and scanned. Each new input shape is traced and analysed again, so call the
        function inside `jax.jit`. A removed unit is left out of every sum over units, and counts as minus
        infinity in every maximum.

        Args:
          fn: the function that was analysed.

        Returns:
          Function `small_fn(small_params, *inputs)`.
        """
        return compact(fn, self.shapes, self.kept, self.state)

    def fold_constants(self, fn: Callable, params: PyTree, *inputs: Any, tolerance: float = 1e-5) -> PyTree:
        r"""Moves the constant contributions of removed units into the biases that follow.

        If all incoming weights of a unit are zero, but its bias (or the bias of its BatchNorm) is not, the unit is
        the constant \( c = f(b) \). A channel mask leaves such units behind. The unit adds
        \( c \, W_\text{out} \) to every sum over it, and `shrink` alone would drop this constant. The returned
        parameters include it: the small function computes on them what `fn` computes on `params`.

        `fn` is run once. The missing contribution is followed from each sum over removed units through linear
        operations, up to a place where a parameter is added or subtracted (a bias, the running mean of a
        BatchNorm). The contribution is added to that parameter. Constant means that the contribution is the same
        for all samples and positions of `inputs`, so pass inputs that differ from each other. Units that
        contribute nothing need no bias.

        Args:
          fn: the function that was analysed.
          params: the full parameters, with weights pruned to zero but not removed.
          *inputs: concrete inputs.
          tolerance: largest error that counts as equal, relative to the largest entry of each sum.

        Returns:
          Full parameters to pass to `shrink`; only biases differ from `params`.

        Raises:
          ValueError: if a removed unit is not constant; if its contribution reaches another operation before a bias
            is added; if only a part of the values that the bias is added to have the contribution (as in a
            zero-padded convolution); if the bias has other uses. The message names the equation.

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
          opt_state: the state of any optax optimizer of the full parameters. An array is sliced if it has the path
            and the shape of a parameter in a tree like the parameters. It may have additional leading axes
            (L-BFGS), concatenate all weights in one vector (`optax.flatten`), or be in a tree with the masked-out
            leaves of `optax.partition` and `optax.masked`. Adafactor's factored moments and SM3's statistics of
            each axis are sliced too.
          min_dim_size_to_factor: Adafactor's argument of this name. If a parameter becomes too small to be
            factored, its factored moments are multiplied out.

        Returns:
          The state for the small parameters.

        Raises:
          ValueError: if an array belongs to a parameter by its path but its shape does not fit the parameter; if the
            state has GaLore's moments of a parameter that loses units, since their entries belong to no weight.
        """
        return shrink_opt_state(opt_state, self.shapes, self.kept, min_dim_size_to_factor)

    def verify(
        self, fn: Callable, params: PyTree, *inputs: Any, tolerance: float | None = None
    ) -> Verification:
        """Compares the small function with two reference functions on concrete parameters.

        The masked reference is the full function, in which every reduction over units sees the identity of the
        reduction at removed units. The zeroed reference is `fn` itself on `apply_masks(params, plan.masks(params))`.
        It shares nothing with the analysis, and it may differ if zeroing parameters is not the same as removing
        units (a softmax over units, a two-pass variance). The report then names these reductions and their source
        lines, and `ok` means that the original function equals the small one once these reductions, and no
        others, are masked. An output that is NaN on either side is never equal.

        Args:
          fn: the function that was analysed.
          params: the full parameters.
          *inputs: concrete inputs.
          tolerance: largest error that counts as equal, relative to the largest output. By default 1e-4, or
            8 roundings of the narrowest float that the function computes with (0.06 for bfloat16).

        Returns:
          The report; `report.ok` says whether the small function equals the references.
        """
        self.check(params)
        masks = self.masks(params)
        return verify(fn, params, inputs, self.kept, self.state, self.shrink, masks, tolerance)

    def then(self, later: Any) -> Any:
        """Composes this plan and a plan for the small parameters into one plan for the full parameters.

        Args:
          later: a plan that was made for the small parameters, which `shrink` of this plan returns. A plan of layers
            gives a `ComposedPlan`.

        Returns:
          The composed plan.

        Raises:
          ValueError: if `later` was made for other shapes.
        """
        if not isinstance(later, Plan):
            return later.after(self)
        if dict(later.shapes) != self.small_shapes:
            raise ValueError(
                "`later` must be a plan for the small parameters of this plan, but its shapes differ from theirs."
            )
        kept = {
            path: tuple(composed_mask(a, b) for a, b in zip(masks, later.kept[path], strict=True))
            for path, masks in self.kept.items()
        }
        same = self.factors is None and dict(later.shapes) == dict(self.shapes)
        return Plan(self.shapes, kept, self.state, self.inputs, later.factors if same else self.factors)

    def check(self, params: PyTree) -> None:
        """Raises a ValueError if the paths or shapes of the parameters differ from the plan."""
        check_tree(params, self.shapes)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the plan as a plain `.npz` file: a JSON header and bool arrays, no pickle.

        An existing file is replaced once the new file is complete.

        Args:
          path: the file.

        Raises:
          ValueError: if the masks don't fit the shapes.
        """
        write_plan(path, self.shapes, self.kept)

    @staticmethod
    def load(path: str | os.PathLike, state: State | None = None) -> Plan:
        """Reads a plan that `save` wrote. No code from the file is run, and no more than the file's size is read.

        Args:
          path: the file.
          state: as in `find_groups`, if the plan was made with a state.

        Returns:
          The plan.

        Raises:
          ValueError: if the file is not a plan, is damaged or has a newer format, or if its masks don't fit its
            shapes. The message names the file.
        """
        return Plan(*read_plan(path), state)

    def __str__(self) -> str:
        small = self.small_shapes
        changed = [(path, shape, small[path]) for path, shape in self.shapes.items() if small[path] != shape]
        rows = folded(Row((path,), (shape_text(old), shape_text(new))) for path, old, new in changed)
        cells = [(times(row.paths[0], count), *row.cells) for row, count in rows]
        table = table_text(("parameter", "shape", "small shape"), cells)
        return and_measured(f"{table}\n\n{removed_text(self.shapes, small)}", self.measured)

    __repr__ = __str__


def _on_device(mask: Any) -> Any:
    return True if mask is True else jnp.asarray(mask)
