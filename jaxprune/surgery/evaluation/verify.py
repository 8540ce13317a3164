"""Verification of a plan on concrete numbers, against two reference functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.jaxprs import is_array_leaf
from jaxprune.params import PyTree
from jaxprune.surgery.evaluation.compact import run
from jaxprune.surgery.evaluation.interpreter import Masked, Small
from jaxprune.surgery.evaluation.watching import QUICK_COMPILATION, Watched, largest_difference
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.model import KeptAxes, Model, State, analyse, keep_of
from jaxprune.surgery.inference.rules import take_kept
from jaxprune.tables import table_text

_TOLERANCE = 1e-4
_ROUNDINGS = 8  # tolerated error, in roundings of the narrowest float that a model computes with


@dataclass(frozen=True)
class Verification:
    """The result of `plan.verify`; printing it shows a table.

    Attributes:
      masked: largest difference between the small and the masked function, relative to the largest output;
        infinite if an output is NaN on either side.
      zeroed: the same difference between the small function and the original function on zeroed parameters.
      tolerance: largest difference that counts as equal.
      differences: the reductions, with their source lines, whose value at removed units is not their identity if
        parameters are only zeroed.
      explained: the same as `zeroed`, if these reductions, and no others, are masked in the original function.
    """

    masked: float
    zeroed: float
    tolerance: float
    differences: tuple[str, ...]
    explained: float = float("inf")

    @property
    def zeroing_is_removal(self) -> bool:
        """Whether the original function on zeroed parameters computes the same as the small function."""
        return self.zeroed <= self.tolerance

    @property
    def ok(self) -> bool:
        """Whether the small function equals the masked one, and the zeroed one once the named reductions are masked."""
        return self.masked <= self.tolerance and min(self.zeroed, self.explained) <= self.tolerance

    def __str__(self) -> str:
        rows = [
            ("small against masked function", f"{self.masked:.1e}"),
            ("small against zeroed parameters", f"{self.zeroed:.1e}"),
        ]
        if self.differences:
            rows.append(("  the same, masked where named", f"{self.explained:.1e}"))
        rows.append(("ok" if self.ok else "NOT EQUAL", f"tolerance {self.tolerance:.0e}"))
        text = table_text(("check", "largest difference"), rows, numbers=("largest difference",))
        if not self.differences:
            return text
        places = [(place,) for place in self.differences]
        return f"{text}\n\n{table_text(('zeroing is not removal in',), places)}"

    __repr__ = __str__


def verify(
    fn: Callable,
    params: PyTree,
    inputs: tuple[Any, ...],
    kept_axes: KeptAxes,
    state: State | None,
    shrink: Callable[[PyTree], PyTree],
    masks: PyTree,
    tolerance: float | None,
) -> Verification:
    """Compares the small function with the masked one and with `fn` on zeroed parameters.

    Args:
      fn, params, inputs: the function that was analysed, its full parameters, and concrete inputs.
      kept_axes, state: `kept` and `state` of the plan.
      shrink: function from the full to the small parameters.
      masks: the plan as masks on the full parameters.
      tolerance: largest error that counts as equal; None to choose it by the floats that `fn` computes with.
    """
    model = analyse(fn, params, inputs, state)
    keep = keep_of(model, kept_axes)
    if tolerance is None:
        tolerance = max(_TOLERANCE, _ROUNDINGS * max(map(_rounding, _dtypes(model.frame)), default=0.0))
    zeroed = jax.tree.map(
        lambda x, m: _zeroed(x, m) if is_array_leaf(x) and m is not True else x, params, masks
    )

    def outputs(function: Callable, params: PyTree) -> list[Any]:
        return jax.tree.leaves(_compiled(function, params, inputs)())

    def kept(outs: Sequence[Any]) -> list[Any]:
        return [take_kept(x, axes, keep) for x, axes in zip(outs, model.frame.outs, strict=True)]

    small = outputs(lambda p, *x: run(model, Small(keep), p, x), shrink(params))
    masked = kept(outputs(lambda p, *x: run(model, Masked(keep), p, x), params))
    original = kept(outputs(fn, zeroed))
    against_masked, against_zeroed = _error(small, masked), _error(small, original)
    if against_zeroed <= tolerance:
        return Verification(against_masked, against_zeroed, tolerance, (), against_zeroed)
    differences, explained = _explain(model, keep, zeroed, inputs, tolerance, small, original, kept)
    return Verification(against_masked, against_zeroed, tolerance, differences, explained)


def _explain(
    model: Model,
    keep: Keep,
    zeroed: PyTree,
    inputs: tuple[Any, ...],
    tolerance: float,
    small: Sequence[Any],
    original: Sequence[Any],
    kept: Callable[[Sequence[Any]], list[Any]],
) -> tuple[tuple[str, ...], float]:
    """The reductions to mask so that the original function equals the small one, and the error that remains.

    All runs use one compiled function, which takes the reductions to mask as an argument.
    """
    watched = Watched(model, keep)
    function = _compiled(
        lambda params, *inputs, flags, level: watched(params, inputs, flags, level),
        zeroed,
        inputs,
        QUICK_COMPILATION,
    )
    none = np.zeros(len(watched.places), bool)
    outs, _ = function(flags=none, level=np.float32(np.inf))
    same = _error(
        kept(outs), original
    )  # it must be the same function as the original to explain its differences
    flags, error = none, float("inf")
    for level in (tolerance, 0.0):
        flags = np.asarray(function(flags=none, level=np.float32(level))[1]) > level
        for _ in watched.places:
            outs, changes = function(flags=flags, level=np.float32(np.inf))
            more = (np.asarray(changes) > level) & ~flags
            if not more.any():
                break
            flags = flags | more
        error = max(same, _error(small, kept(outs)))
        if error <= tolerance:
            break
    names = [place.name for place, flag in zip(watched.places, flags, strict=True) if flag]
    return tuple(dict.fromkeys(names)), error


def _compiled(
    function: Callable, params: PyTree, inputs: tuple[Any, ...], options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The compiled function of the arrays among its arguments; other leaves are not passed through `jit`."""
    leaves, treedef = jax.tree.flatten((params, inputs))
    arrays = [x if is_array_leaf(x) else None for x in leaves]

    def flat(arrays, more):
        full = [x if array is None else array for x, array in zip(leaves, arrays, strict=True)]
        params, inputs = jax.tree.unflatten(treedef, full)
        return function(params, *inputs, **more)

    compiled = jax.jit(flat, compiler_options=options)
    return lambda **more: compiled(arrays, more)


def _zeroed(leaf: Any, mask: Any) -> Any:
    array = jnp.asarray(leaf)
    return jnp.where(mask, array, jnp.zeros_like(array))


def _dtypes(frame: Frame) -> Iterator[Any]:
    for eqn in frame.jaxpr.eqns:
        yield from (getattr(v.aval, "dtype", None) for v in eqn.outvars)
    for bodies in frame.calls.values():
        for body in bodies:
            yield from _dtypes(body)


def _rounding(dtype: Any) -> float:
    """The spacing of a dtype's numbers at 1, for floats narrower than float32; 0 for other dtypes."""
    is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return float(jnp.finfo(dtype).eps) if is_float and jnp.finfo(dtype).bits < 32 else 0.0


def _error(a: Sequence[Any], b: Sequence[Any]) -> float:
    """Largest relative difference of the outputs; infinite if one of them is NaN or the shapes differ."""
    a, b = [jnp.asarray(x) for x in a], [jnp.asarray(x) for x in b]
    if [x.shape for x in a] != [x.shape for x in b] or any(map(_has_nan, (*a, *b))):
        return float("inf")
    return float(largest_difference(a, b))


def _has_nan(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact) and bool(jnp.isnan(x).any())
