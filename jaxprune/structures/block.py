"""Blocks: rectangles of neighbouring weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxprune.host import namespace
from jaxprune.meshes import is_explicit
from jaxprune.structures.by_leaf import LeafUnits, cut_by_leaf, matrix_leaf
from jaxprune.structures.matrix import MatrixUnits
from jaxprune.structures.mean import mean_over
from jaxprune.structures.structure import Shape
from jaxprune.tree_nodes import Leaf


@dataclasses.dataclass(frozen=True)
class Block:
    """Every block of `shape` along the last axes is a unit. Blocks at the far edges are smaller if it doesn't divide.

    The score of a block is the mean score of its weights, so that smaller blocks at the edges compete fairly.
    Counts and sparsities are those of blocks.

    Args:
      shape: extent of a block along the last `len(shape)` axes, such as (4, 4); leading axes are not grouped.

    Raises:
      ValueError: if an extent is below 1, or a leaf has fewer axes than the block (the error names the leaf).

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> scores = jnp.array([[1.0, 1.0, 5.0], [1.0, 1.0, 5.0], [9.0, 9.0, 0.0]])
      >>> jp.make_masks({"w": scores}, 0.5, structure=jp.Block((2, 2)))["w"]
      Array([[False, False,  True],
             [False, False,  True],
             [ True,  True, False]], dtype=bool)

    References:
      Narang, Undersander, Diamos, Block-Sparse Recurrent Neural Networks, 2017, arXiv:1711.02782.
    """

    shape: tuple[int, ...]

    @property
    def fixed_sparsity(self) -> None:
        return None

    def __post_init__(self):
        extents = (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)
        if not extents or any(not isinstance(n, int) or n < 1 for n in extents):
            raise ValueError(
                f"Block `shape` must hold extents of at least 1, such as (4, 4), got {self.shape!r}."
            )
        object.__setattr__(self, "shape", extents)

    def check_scope(self, scope: str) -> None:
        del scope

    def check_sparsity(self, share: Any, path: str) -> None:
        del share, path

    def default_leaves(self, leaves: Sequence[Leaf]) -> None:
        del leaves

    def cut(self, leaves: Sequence[Leaf], chosen: Sequence[int]) -> LeafUnits:
        return cut_by_leaf(self, leaves, chosen)

    def matrix_units(self) -> MatrixUnits:
        if len(self.shape) != 2:
            raise ValueError(f"`structure` must be a block of (inputs, outputs), got Block({self.shape}).")
        return MatrixUnits(f"Block({self.shape})", inputs=self.shape[0], kept=None, are_weights=False)

    def cut_matrix(self, shape: Shape) -> LeafUnits:
        return self.cut([matrix_leaf(shape)], [0])

    def check(self, path: str, shape: Shape) -> None:
        if len(shape) < len(self.shape):
            raise ValueError(
                f"Block({self.shape}) needs {len(self.shape)} axes, got {path!r} of shape {shape}. "
                "Exclude this leaf."
            )

    def _extents(self, shape: Shape) -> Shape:
        return (1,) * (len(shape) - len(self.shape)) + self.shape

    def unit_shape(self, shape: Shape) -> Shape:
        return tuple(-(-n // b) for n, b in zip(shape, self._extents(shape), strict=True))

    def unit_sizes(self, shape: Shape) -> np.ndarray:
        sizes = np.ones(self.unit_shape(shape), np.int64)
        for axis, (n, b) in enumerate(zip(shape, self._extents(shape), strict=True)):
            along = np.minimum(b, n - b * np.arange(sizes.shape[axis]))
            sizes = sizes * along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return sizes

    def unit_scores(self, scores: jax.Array) -> jax.Array:
        xp = namespace(scores)
        shape, extents = scores.shape, self._extents(scores.shape)
        units = self.unit_shape(shape)
        if math.prod(shape) == 0:
            return xp.zeros(units, np.float32)
        pads = [(0, u * b - n) for u, b, n in zip(units, extents, shape, strict=True)]
        axes = tuple(range(1, 2 * len(shape), 2))
        if not any(after for _, after in pads):
            return mean_over(self._split(scores), axes).reshape(units)
        inside = self._split(xp.pad(xp.ones(shape, bool), pads))
        return mean_over(self._split(xp.pad(scores, pads)), axes, inside).reshape(units)

    def expand(self, units: jax.Array, shape: Shape) -> jax.Array:
        extents = self._extents(shape)
        xp = namespace(units)
        split = xp.expand_dims(units, tuple(range(1, 2 * len(shape), 2)))
        spread = xp.broadcast_to(
            split, [n for u, b in zip(units.shape, extents, strict=True) for n in (u, b)]
        )
        whole_shape = [u * b for u, b in zip(units.shape, extents, strict=True)]
        whole = _reshaped(spread, whole_shape, units, 1)
        return whole if whole.shape == tuple(shape) else whole[tuple(slice(0, n) for n in shape)]

    def _split(self, whole: jax.Array) -> jax.Array:
        extents = self._extents(whole.shape)
        shape = [n for w, b in zip(whole.shape, extents, strict=True) for n in (w // b, b)]
        return _reshaped(whole, shape, whole, 2)


def _reshaped(x: jax.Array, shape: list[int], like: jax.Array, axes: int) -> jax.Array:
    """`x` in another shape, in which each group of `axes` axes is one axis of `like`."""
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    return jax.lax.reshape(x, shape, out_sharding=_explicit_sharding(like, axes))


def _explicit_sharding(x: jax.Array, axes: int) -> NamedSharding | None:
    """On an explicit mesh a reshape needs the place of a sharded axis: the first of its `axes` axes."""
    if not is_explicit(x):
        return None
    sharding: Any = jax.typeof(x).sharding
    spec = [axis for n in sharding.spec for axis in (n, *[None] * (axes - 1))]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))
