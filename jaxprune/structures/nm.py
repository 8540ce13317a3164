"""N:M sparsity: n of every m consecutive weights along the input axis are kept."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.host import namespace
from jaxprune.selection import nm_keep, select
from jaxprune.structures.by_leaf import LeafUnits, cut_by_leaf, matrix_leaf
from jaxprune.structures.input_axes import InputAxis, input_axes
from jaxprune.structures.keep import above_all
from jaxprune.structures.matrix import MatrixUnits
from jaxprune.structures.structure import Shape
from jaxprune.tree_nodes import Leaf

_PROJECTIONS = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class NM:
    """Keeps the `n` highest scores in each group of `m` consecutive weights along the input axis.

    Hardware skips zeros along the contracted axis of a product. In JAX's layouts, Dense kernels (in, out) and
    convolutions (..., in, out), that is the second to last axis. Flax's attention projections `query`, `key`
    and `value` have kernels (in, heads, head_dim), where it is the third to last. Equinox layers and torch's
    flat names (`fc.weight`) have the layout (out, in) or (out, in, ...). A bias beside a weight shows which
    axis is the output. Any other leaf called `weight` may have either layout: an error asks for `axis`.

    The pattern fixes the sparsity at 1 - n/m. `make_masks` accepts exactly that sparsity (or 0). A schedule of
    `gradual` may pass through smaller ones, and then prunes the lowest of the weights that n:m would prune.

    Args:
      n: number of weights that are kept in each group.
      m: length of a group; it must divide the axis.
      axis: the input axis of every leaf, or a function `(path, shape) -> axis`; None follows the rule above.

    Raises:
      ValueError: unless 0 < n < m; if m does not divide the axis of a leaf, or the axis of a leaf is not known
        (the error names the leaf).

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> kernel = jnp.array([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0]])
      >>> jp.make_masks({"kernel": kernel}, 0.5, structure=jp.NM(2, 4))["kernel"]
      Array([[ True, False],
             [ True, False],
             [False,  True],
             [False,  True]], dtype=bool)

    References:
      Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv:2104.08378.
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021,
      arXiv:2102.04010.
    """

    n: int
    m: int
    axis: int | Callable[[str, Shape], int] | None = None

    def __post_init__(self):
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 0 < self.n < self.m):
            raise ValueError(
                f"NM(`n`, `m`) needs 0 < n < m, got n={self.n!r}, m={self.m!r}: n of every m weights are kept."
            )

    @property
    def sparsity(self) -> float:
        """1 - n/m."""
        return 1 - self.n / self.m

    @property
    def fixed_sparsity(self) -> float:
        return self.sparsity

    def check_scope(self, scope: str) -> None:
        del scope

    def check_sparsity(self, share: Any, path: str) -> None:
        if isinstance(share, Tracer):
            return  # a schedule's value: it may be anywhere below the pattern's
        if float(share) != 0 and not math.isclose(float(share), self.sparsity, rel_tol=1e-6):
            raise ValueError(
                f"`sparsity` must be {self.sparsity:g} for NM({self.n}, {self.m}), which keeps {self.n} of every "
                f"{self.m} weights, got {share} at {path!r}. (A schedule of `gradual` may pass smaller ones.)"
            )

    def default_leaves(self, leaves: Sequence[Leaf]) -> None:
        del leaves

    def cut(self, leaves: Sequence[Leaf], chosen: Sequence[int]) -> LeafUnits:
        structure = with_input_axes(self, leaves)
        units = cut_by_leaf(structure, leaves, chosen)
        axes = map(structure.group_axis, units.names, units.leaf_shapes)
        rule = Pattern(self.n, self.m, tuple(axes), tuple(map(math.prod, units.leaf_shapes)))
        # The cut keeps only what all patterns have in common, so that programs are shared.
        return dataclasses.replace(units, structure=NM(self.n, self.m), rule=rule)

    def matrix_units(self) -> MatrixUnits:
        return MatrixUnits(f"NM({self.n}, {self.m})", inputs=self.m, kept=self.n, are_weights=True)

    def cut_matrix(self, shape: Shape) -> LeafUnits:
        return dataclasses.replace(self, axis=0).cut([matrix_leaf(shape)], [0])

    def group_axis(self, path: str, shape: Shape) -> int:
        """The axis (counted from the front) along which the groups of this leaf lie."""
        if callable(self.axis):
            axis = self.axis(path, shape)
        elif self.axis is not None:
            axis = self.axis
        else:
            *parents, name = re.split("[/.]", path)
            is_projection = name == "kernel" and parents[-1:] and parents[-1] in _PROJECTIONS
            axis = -3 if is_projection and len(shape) >= 3 else -2 if len(shape) >= 2 else -1
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"NM `axis` {axis} is out of range for {path!r} of shape {shape}.")
        return axis % len(shape)

    def check(self, path: str, shape: Shape) -> None:
        axis = self.group_axis(path, shape)
        if shape[axis] % self.m:
            raise ValueError(
                f"NM({self.n}, {self.m}): `m` must divide the input axis, got {path!r} of shape {shape} with "
                f"{shape[axis]} along axis {axis}. Exclude this leaf, or pass `axis`."
            )

    def unit_shape(self, shape: Shape) -> Shape:
        return shape

    def unit_sizes(self, shape: Shape) -> int:
        del shape
        return 1

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        return scores

    def expand(self, units: jax.Array, shape: Shape) -> jax.Array:
        del shape
        return units


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Keeps n of every m weights, or more of them if the count to prune is below that of the pattern.

    Args:
      n, m: the pattern.
      axes: the axis of each leaf along which its groups lie.
      sizes: number of weights of each leaf.
    """

    n: int
    m: int
    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    def counts_to_compare(self, counts: Any) -> Any:
        limits = [size * (self.m - self.n) // self.m for size in self.sizes]
        if isinstance(counts, list):
            return None if all(isinstance(count, int) for count in counts) and counts == limits else counts
        return None if isinstance(counts, int) and counts == sum(limits) else counts

    def select(
        self,
        units: list[jax.Array],
        counts: Any,
        pruned: list[jax.Array | None],
        unprotected: list[Any] | None = None,
    ) -> list[jax.Array]:
        del unprotected  # a pattern keeps its share of every leaf
        patterns = [
            nm_keep(u, self.n, self.m, axis, pruned=p)
            for u, axis, p in zip(units, self.axes, pruned, strict=True)
        ]
        if counts is None:
            return patterns
        # Below the pattern's own sparsity: the lowest of the weights that the pattern would prune. A weight that
        # the pattern keeps ranks above all of them.
        ranked = [
            above_all(namespace(u).where(namespace(u).isnan(u), u.dtype.type(-jnp.inf), u), pattern)
            for u, pattern in zip(units, patterns, strict=True)
        ]
        kept = select(ranked, counts, pruned=pruned)
        return [k | pattern for k, pattern in zip(kept, patterns, strict=True)]


@dataclasses.dataclass(frozen=True)
class InputAxes:
    """The input axes that a tree determines: path -> axis, for the `axis` of `NM`.

    `elsewhere` is the pattern whose own rule applies to all other leaves.
    """

    axes: tuple[tuple[str, InputAxis], ...]
    elsewhere: NM

    def __call__(self, path: str, shape: tuple[int, ...]) -> int:
        axis = dict(self.axes).get(path)
        if axis == "either":
            raise ValueError(
                f"NM({self.elsewhere.n}, {self.elsewhere.m}) groups weights along the inputs, but nothing tells "
                f"whether {path!r} of shape {shape} is (out, in) or (in, out). Name the `axis`: "
                f"NM({self.elsewhere.n}, {self.elsewhere.m}, axis=-1) for (out, in), -2 for (in, out), or a "
                "function (path, shape) -> axis."
            )
        return self.elsewhere.group_axis(path, shape) if axis is None else axis


def with_input_axes(pattern: NM, leaves: Sequence[Leaf]) -> NM:
    """The pattern; if it has no `axis`, with the axes that the tree of these leaves determines."""
    known = tuple(input_axes(leaves).items()) if pattern.axis is None else ()
    return dataclasses.replace(pattern, axis=InputAxes(known, pattern)) if known else pattern
