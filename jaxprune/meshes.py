"""Meshes with explicit axes, on which an array's sharding is part of its type."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import AxisType


def is_explicit(array: Any) -> bool:
    """Whether an axis of the array's mesh is explicit: what is computed with it must then be placed by hand.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxprune.meshes import is_explicit
      >>> is_explicit(jnp.ones(3))
      False
    """
    sharding: Any = jax.typeof(array).sharding
    return AxisType.Explicit in getattr(sharding.mesh, "axis_types", ())
