"""Arrays in host memory: immediate computations with them need no compiled program."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import SingleDeviceSharding


def is_on_host(x: Any) -> bool:
    """Whether `x` is a NumPy array, or a JAX array with known values on one CPU device."""
    if isinstance(x, np.ndarray):
        return True
    if (
        not isinstance(x, jax.Array)
        or isinstance(x, Tracer)
        or not isinstance(x.sharding, SingleDeviceSharding)
    ):
        return False
    return x.is_fully_addressable and all(device.platform == "cpu" for device in x.devices())


def are_on_host(arrays: Iterable[Any]) -> bool:
    """Whether all of the arrays are on the host; None in place of an array counts as one."""
    return all(x is None or is_on_host(x) for x in arrays)


def to_host(x: Any) -> np.ndarray:
    """The values as a read-only NumPy array in a dtype of JAX; a view if possible."""
    array = np.asarray(x)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def to_device(x: Any, like: Any) -> jax.Array:
    """A NumPy array as a JAX array on the device of `like`; anything else as it is."""
    if not isinstance(x, np.ndarray):
        return x
    if isinstance(like, jax.Array) and like.committed:
        return jax.device_put(x, like.sharding)
    return jax.device_put(x)  # `jnp.asarray` compiles a program for each shape


def beside(x: Any, like: Any) -> jax.Array:
    """An array with the sharding of `like`, which has its shape; committed to devices only if `like` is.

    `jit` compiles once for arrays that are committed and once more for those that are not.
    """
    if isinstance(x, np.ndarray):
        return to_device(x, like)
    return jax.device_put(x, like.sharding) if isinstance(like, jax.Array) and like.committed else x


def settled(arrays: Any) -> None:
    """Waits for arrays that are spread over the devices of a CPU.

    Collectives of many programs that wait in line can wait for each other for ever there.
    """
    for x in jax.tree.leaves(arrays):
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
            devices = x.devices()
            if len(devices) > 1 and next(iter(devices)).platform == "cpu":
                x.block_until_ready()


def namespace(x: Any) -> ModuleType:
    """`numpy` for a NumPy array, `jax.numpy` for anything else."""
    return np if isinstance(x, np.ndarray) else jnp
