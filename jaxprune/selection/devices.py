"""Whether arrays may be spread over devices. Inside `jit` that is known only when the program is compiled."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from jaxprune.meshes import is_explicit

Function = Callable[..., list[jax.Array]]


def by_placement(
    function: Function, shapes: Sequence[tuple[int, ...]], *arguments: jax.Array
) -> list[jax.Array]:
    """`function(*arguments, partitioned=...)`, where `partitioned` is whether its arguments may be spread over devices.

    While a function is traced, the placement of its arrays is not known. A program for one device may copy arrays
    side by side; on several devices such a copy would gather them. So under `jit` this is one primitive, whose
    body is chosen when it is lowered, by the number of devices on which the whole program runs.

    Args:
      function: hashable, so that equal calls are traced once.
      shapes: shapes of its results, bool arrays.
      arguments: arrays.

    Returns:
      The results. Gradients do not flow through it.
    """
    traced = [x for x in arguments if isinstance(x, jax.core.Tracer)]
    if not traced:
        placed = any(len(x.sharding.device_set) > 1 for x in arguments)
        return _compiled(*arguments, function=function, partitioned=placed)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.manual_axes or any(map(is_explicit, arguments)):
        # Inside `shard_map` over all axes each device has arrays of its own.
        return function(*arguments, partitioned=set(mesh.manual_axes) != set(mesh.axis_names))
    if jax.device_count() == 1:
        return function(*arguments, partitioned=False)
    stopped = [jax.lax.stop_gradient(x) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arguments]
    return _placed.bind(*stopped, function=function, shapes=tuple(shapes))


@functools.partial(jax.jit, static_argnames=("function", "partitioned"))
def _compiled(*arguments: jax.Array, function: Function, partitioned: bool) -> list[jax.Array]:
    return function(*arguments, partitioned=partitioned)


_placed = Primitive("select_by_placement")
_placed.multiple_results = True


@_placed.def_abstract_eval
def _abstract(*arguments: Any, function: Function, shapes: tuple[tuple[int, ...], ...]) -> list[ShapedArray]:
    del arguments, function
    return [ShapedArray(shape, jnp.dtype(bool)) for shape in shapes]


@_placed.def_impl
def _run(*arguments: Any, function: Function, shapes: tuple[tuple[int, ...], ...]) -> list[jax.Array]:
    return by_placement(function, shapes, *arguments)


def _lower(ctx: mlir.LoweringRuleContext, *arguments: Any, function: Function, shapes: Any) -> Any:
    del shapes
    devices = getattr(ctx.module_context.axis_context, "num_devices", None)
    chosen = functools.partial(function, partitioned=devices != 1)
    return mlir.lower_fun(chosen, multiple_results=True)(ctx, *arguments)


mlir.register_lowering(_placed, _lower)


def _batch(arguments: Sequence[Any], dims: Sequence[Any], *, function: Function, shapes: Any) -> Any:
    (size,) = {x.shape[dim] for x, dim in zip(arguments, dims, strict=True) if dim is not None}
    axes = tuple(dims)
    found = by_placement(_Mapped(function, axes), [(size, *shape) for shape in shapes], *arguments)
    return found, [0] * len(found)


batching.primitive_batchers[_placed] = _batch


@dataclasses.dataclass(frozen=True)
class _Mapped:
    """`function` under `vmap`."""

    function: Function
    axes: tuple[int | None, ...]

    def __call__(self, *arguments: jax.Array, partitioned: bool) -> list[jax.Array]:
        chosen = functools.partial(self.function, partitioned=partitioned)
        return jax.vmap(chosen, in_axes=self.axes)(*arguments)
