"""Rows: the activations that a weight multiplies, as the rows of one matrix per group."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs.equations import shape_of
from jaxprune.jaxprs.views import Matrix, View, matrix


@dataclasses.dataclass(frozen=True)
class DotRows:
    """Rows of an operand of `dot_general`: its axes are groups (batch axes), inputs (contracted axes), or rows."""

    groups: tuple[int, ...]
    inputs: tuple[int, ...]
    ndim: int

    @property
    def free(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.ndim) if i not in self.groups + self.inputs)

    def row_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[i] for i in self.free)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The rows of `x`, (groups, rows, inputs)."""
        sizes = [math.prod(x.shape[i] for i in axes) for axes in (self.groups, self.free, self.inputs)]
        return x.transpose(*self.groups, *self.free, *self.inputs).reshape(sizes)


@dataclasses.dataclass(frozen=True)
class ConvRows:
    """Rows of the input of a convolution: one row per patch, with entries in the order (window, channel).

    Channels come last so that N:M groups, which are neighbours, run along them.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    to_channels_first: tuple[int, ...]
    groups: int

    def row_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        sizes = [shape[i] for i in self.to_channels_first]
        spatial = []
        for n, k, stride, (low, high), dilation, spread in zip(
            sizes[2:],
            self.window,
            self.strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            strict=True,
        ):
            reach = (n - 1) * dilation + 1 + low + high - (k - 1) * spread - 1
            spatial.append(max(reach // stride + 1, 0))
        return (sizes[0], *spatial)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The patches of `x`, (groups, rows, inputs)."""
        patches = lax.conv_general_dilated_patches(
            x.transpose(self.to_channels_first),
            self.window,
            self.strides,
            self.padding,
            self.lhs_dilation,
            self.rhs_dilation,
            precision=lax.Precision.HIGHEST,
        )
        patches = jnp.moveaxis(patches, 1, -1)  # its features: (channel, window)
        size = math.prod(self.window)
        patches = patches.reshape(math.prod(patches.shape[:-1]), self.groups, -1, size)
        return patches.transpose(1, 0, 3, 2).reshape(self.groups, patches.shape[0], -1)


Rows = DotRows | ConvRows


def weight_product(eqn: JaxprEqn, views: list[View | None]) -> tuple[int, Rows, Matrix] | None:
    """The product of an equation by a parameter: (operand of the activations, their rows, the weight).

    None if the equation is not a product of activations and one parameter.
    """
    name = eqn.primitive.name
    if name == "dot_general" and (views[0] is None) != (views[1] is None):
        return _dot(eqn, views)
    if name == "conv_general_dilated" and views[0] is None and views[1] is not None:
        return _conv(eqn, views[1])
    return None


def _dot(eqn: JaxprEqn, views: list[View | None]) -> tuple[int, Rows, Matrix]:
    contracting, batch = eqn.params["dimension_numbers"]
    w = 0 if views[0] is not None else 1
    x = 1 - w
    view: Any = views[w]
    groups, inputs = list(batch[w]), list(contracting[w])
    outputs = [i for i in range(len(view.axes)) if i not in groups + inputs]
    rows = DotRows(tuple(batch[x]), tuple(contracting[x]), len(shape_of(eqn.invars[x])))
    return x, rows, matrix(view, groups, inputs, outputs)


def _conv(eqn: JaxprEqn, view: View) -> tuple[int, Rows, Matrix] | None:
    p = eqn.params
    if p["batch_group_count"] != 1:
        return None
    lhs, rhs, _ = p["dimension_numbers"]
    groups = p["feature_group_count"]
    out_axis, in_axis, *window_axes = rhs
    split = _split_first(view, out_axis, groups)
    if split is None:
        return None
    rows = ConvRows(
        tuple(view.shape[i] for i in window_axes),
        tuple(p["window_strides"]),
        tuple(map(tuple, p["padding"])),
        tuple(p["lhs_dilation"]),
        tuple(p["rhs_dilation"]),
        tuple(lhs),
        groups,
    )
    last = len(view.axes)  # position at which `_split_first` puts the groups
    return 0, rows, matrix(split, [last], [*window_axes, in_axis], [out_axis])


def weights_of_rows(weights: Any, rows: Rows, shape: tuple[int, ...]) -> jax.Array | None:
    """Weights such as (batch, position), as one number per row of activations; None if they don't fit.

    They fit if they match the leading axes of the rows, or the merged product of these axes.
    """
    row_shape = rows.row_shape(shape)
    each = weights_of_entries(weights, row_shape)
    return None if each is None else jnp.broadcast_to(each, row_shape).reshape(-1)


def weights_of_entries(weights: Any, shape: tuple[int, ...]) -> Any:
    """The same in a shape that broadcasts to one of activations; None if they don't fit it."""
    if shape[: weights.ndim] == weights.shape:
        return weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim))
    if shape[:1] == (weights.size,):
        return weights.reshape((-1,) + (1,) * (len(shape) - 1))
    return None


def _split_first(view: View, axis: int, groups: int) -> View | None:
    """Splits `groups` off the front of an axis, as a new last axis."""
    (size, stride), *rest = view.axes[axis] or ((1, 0),)
    if rest or size % groups:
        return None
    within = ((size // groups, stride),)
    axes = [within if i == axis else factors for i, factors in enumerate(view.axes)]
    return view._replace(axes=(*axes, ((groups, stride * (size // groups)),)))
