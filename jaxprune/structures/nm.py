"""N:M sparsity: n of every m consecutive weights along the input axis are kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import jax

from jaxprune.structures.structure import Shape

_PROJECTIONS = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class NM:
    """Keeps the `n` highest scores in each group of `m` consecutive weights along the input axis.

    Hardware skips zeros along the axis that a product contracts. For JAX layouts, Dense kernels (in, out) and
    convolutions (..., in, out), that is the last but one; Flax's attention projections `query`, `key`
    and `value` have kernels (in, heads, head_dim), where it is the last but two. Equinox's layers and torch's
    flat names (`fc.weight`) hold (out, in) or (out, in, ...), and a bias beside a weight tells its outputs.
    Another leaf called `weight` may be either: it is an error that asks for the axis.

    The pattern fixes the sparsity at 1 - n/m. `make_masks` wants exactly that (or 0); a schedule of `gradual`
    may pass through any smaller one, and then prunes the lowest of the weights that n:m would prune.

    Args:
      n: weights kept in a group.
      m: length of a group; it must divide the axis.
      axis: the input axis for every leaf, or a function `(path, shape) -> axis`; None follows the rule above.

    Raises:
      ValueError: unless 0 < n < m; when a leaf's axis is not a multiple of m, or nothing tells it (the leaf is
        named).

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
                f"NM(`n`, `m`) needs 0 < n < m, got n={self.n!r}, m={self.m!r}: n of m are kept."
            )

    @property
    def sparsity(self) -> float:
        """1 - n/m."""
        return 1 - self.n / self.m

    def group_axis(self, path: str, shape: Shape) -> int:
        """The axis (counted from the front) along which the groups of this leaf run."""
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
                f"{shape[axis]} along axis {axis}. Exclude this leaf, or give `axis`."
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
