"""Views: the entries of a parameter that an operand has, as strides, through casts, transposes and reshapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs.equations import shape_of

Factors = tuple[
    tuple[int, int], ...
]  # (size, stride) pairs, row-major; strides count entries of the parameter


# Operations that return the entries of their operand unchanged, in the same or another position.
UNCHANGED = frozenset(
    ("convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision", "sharding_constraint")
)
FOLLOWED = UNCHANGED | {
    *("transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "dynamic_slice", "split")
}


class View(NamedTuple):
    """An array whose entry at an index is the parameter's flat entry `offset + sum(index * stride)`.

    An axis is a row-major product of factors, so that merged axes (heads x head_dim) need no copy.
    """

    leaf: int  # position of the parameter
    offset: int
    axes: tuple[Factors, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(_size(axis) for axis in self.axes)


class Matrix(NamedTuple):
    """A weight as `groups` matrices of shape (inputs, outputs), each a product of factors of the parameter."""

    offset: int
    groups: Factors
    inputs: Factors
    outputs: Factors

    @property
    def shape(self) -> tuple[int, int, int]:
        return _size(self.groups), _size(self.inputs), _size(self.outputs)

    def of(self, array: np.ndarray) -> np.ndarray:
        """A copy of the matrices (groups, inputs, outputs) in an array of the parameter's shape."""
        return np.array(self._strided(array), order="C").reshape(self.shape)

    def put(self, array: np.ndarray, matrices: Any) -> None:
        """Writes matrices (groups, inputs, outputs) into a contiguous array of the parameter's shape."""
        target = self._strided(array)
        target[...] = np.asarray(matrices).reshape(target.shape)

    def _strided(self, array: np.ndarray) -> np.ndarray:
        flat = array.reshape(-1)
        factors = self.groups + self.inputs + self.outputs
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :],
            [size for size, _ in factors],
            [stride * flat.itemsize for _, stride in factors],
        )


def whole(leaf: int, shape: tuple[int, ...]) -> View:
    """The view of a whole parameter."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return View(leaf, 0, tuple(((n, s),) for n, s in zip(shape, strides, strict=True)))


def index(view: View, position: int) -> View:
    """The view at a position of its first axis."""
    offset = view.offset
    for size, stride in reversed(view.axes[0]):
        position, digit = divmod(position, size)
        offset += digit * stride
    return View(view.leaf, offset, view.axes[1:])


def follow(eqn: JaxprEqn, view: View, known: list[Any]) -> View | list[View] | None:
    """The view that an equation makes of its first operand; None if the result is not a view.

    `known` has the values of the other operands, or None for values that are not known.
    """
    p = eqn.params
    match eqn.primitive.name:
        case name if name in UNCHANGED:
            return view
        case "transpose":
            return view._replace(axes=tuple(view.axes[i] for i in p["permutation"]))
        case "reshape":
            return None if p["dimensions"] is not None else _reshape(view, p["new_sizes"])
        case "squeeze":
            dropped = {d % len(view.axes) for d in p["dimensions"]}
            return view._replace(axes=tuple(a for i, a in enumerate(view.axes) if i not in dropped))
        case "expand_dims":
            return _reshape(view, shape_of(eqn.outvars[0]))
        case "broadcast_in_dim":
            return _broadcast(view, p["shape"], p["broadcast_dimensions"])
        case "slice":
            steps = p["strides"] or (1,) * len(view.axes)
            sizes = [
                -(-(limit - start) // step)
                for start, limit, step in zip(p["start_indices"], p["limit_indices"], steps, strict=True)
            ]
            return _slices(view, p["start_indices"], sizes, steps)
        case "dynamic_slice":
            if any(start is None for start in known[: len(view.axes)]):
                return None
            starts = [
                min(max(int(start), 0), n - size)
                for start, n, size in zip(known, view.shape, p["slice_sizes"], strict=False)
            ]
            return _slices(view, starts, p["slice_sizes"], (1,) * len(starts))
        case "split":
            parts, start = [], 0
            for size in p["sizes"]:
                part = _slice(view, p["axis"], start, size, 1)
                if part is None:
                    return None
                parts.append(part)
                start += size
            return parts
    return None


def _size(factors: Factors) -> int:
    return math.prod(size for size, _ in factors)


def _merge(factors: Factors) -> Factors:
    """Merges neighbouring factors that are contiguous in memory, and drops factors of size 1."""
    merged: list[tuple[int, int]] = []
    for size, stride in factors:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return tuple(merged)


def matrix(view: View, groups: list[int], inputs: list[int], outputs: list[int]) -> Matrix:
    """The matrices of a view, given which of its axes are groups, inputs and outputs."""

    def factors(axes: list[int]) -> Factors:
        return _merge(tuple(factor for axis in axes for factor in view.axes[axis]))

    return Matrix(view.offset, factors(groups), factors(inputs), factors(outputs))


def _reshape(view: View, sizes: tuple[int, ...]) -> View | None:
    """Splits and merges axes; None if an axis would be cut across its factors."""
    if 0 in sizes or 0 in view.shape:
        return None
    left = list(_merge(tuple(factor for axis in view.axes for factor in axis)))
    axes = []
    for size in sizes:
        axis, missing = [], size
        while missing > 1:
            have, stride = left.pop(0)
            if missing % have == 0:
                axis.append((have, stride))
                missing //= have
            elif have % missing == 0:
                rest = have // missing
                axis.append((missing, stride * rest))
                left.insert(0, (rest, stride))
                missing = 1
            else:
                return None
        axes.append(tuple(axis))
    return view._replace(axes=tuple(axes))


def _broadcast(view: View, shape: tuple[int, ...], dimensions: tuple[int, ...]) -> View | None:
    axes: list[Factors] = [()] * len(shape)
    for axis, dimension in zip(view.axes, dimensions, strict=True):
        axes[dimension] = axis
    return view._replace(axes=tuple(axes)) if tuple(map(_size, axes)) == tuple(shape) else None


def _slices(view: View, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> View | None:
    found: View | None = view
    for axis, (start, size, step) in enumerate(zip(starts, sizes, steps, strict=True)):
        found = None if found is None else _slice(found, axis, start, size, step)
    return found


def _slice(view: View, axis: int, start: int, size: int, step: int) -> View | None:
    factors = view.axes[axis]
    if start == 0 and step == 1 and size == _size(factors):
        return view
    factors = _merge(factors)
    if len(factors) > 1:  # a slice of a merged axis: only whole steps of its first factor
        inner = _size(factors[1:])
        if start % inner or size % inner or step != 1:
            return None
        first = ((size // inner, factors[0][1]),)
        offset, cut = start // inner * factors[0][1], first + factors[1:]
    else:
        stride = factors[0][1] if factors else 0
        offset, cut = start * stride, ((size, stride * step),)
    axes = (*view.axes[:axis], cut, *view.axes[axis + 1 :])
    return view._replace(offset=view.offset + offset, axes=axes)
