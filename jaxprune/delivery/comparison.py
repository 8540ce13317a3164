"""How far the outputs of an exported model are from those of the function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Errors(NamedTuple):
    """Largest differences: absolute, and relative to the largest entry of their output."""

    absolute: float
    relative: float

    def join(self, other: Errors) -> Errors:
        """The larger of both."""
        return Errors(max(self.absolute, other.absolute), max(self.relative, other.relative))


def largest_errors(found: Sequence[Any], wanted: Sequence[Any]) -> Errors:
    """Compares outputs; a NaN on one side only is infinitely far.

    Raises:
      ValueError: if number or shapes of the outputs differ.
    """
    if len(found) != len(wanted):
        raise ValueError(f"it has {len(found)} outputs, the function has {len(wanted)}")
    errors = Errors(0.0, 0.0)
    for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
        a, b = (_wide(np.asarray(x)) for x in (a, b))
        if a.shape != b.shape:
            raise ValueError(f"its output {i} has the shape {a.shape}, that of the function {b.shape}")
        if not b.size:
            continue
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0, np.abs(a - b))
        absolute = float(np.max(np.where(np.isnan(difference), np.inf, difference)))
        largest = float(np.max(np.abs(b), initial=0, where=np.isfinite(b)))
        errors = errors.join(Errors(absolute, absolute / largest if largest else absolute))
    return errors


def default_tolerance(arrays: Sequence[Any]) -> float:
    """1e-4, or 8 roundings of the narrowest float among arrays."""
    floats = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    return max([1e-4, *(8 * float(jnp.finfo(dtype).eps) for dtype in floats)])


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
