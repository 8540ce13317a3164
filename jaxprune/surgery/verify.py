"""Verification of a plan on concrete numbers, by two oracles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn

from jaxprune.params import PyTree
from jaxprune.surgery.compact import run
from jaxprune.surgery.frames import Frame
from jaxprune.surgery.interpreter import Masked, Small, bind
from jaxprune.surgery.model import analyse, keep_of
from jaxprune.surgery.rules import take_kept
from jaxprune.tracing import is_array_leaf

if TYPE_CHECKING:
    from jaxprune.surgery.plan import Plan


@dataclass(frozen=True)
class Verification:
    """What `plan.verify` saw.

    Attributes:
      masked: largest difference between the small and the masked function, relative to the largest output.
      zeroed: the same against the original function on zeroed parameters.
      tolerance: what counts as equal.
      differences: the reductions, with their source lines, that see something else than their identity at
        removed units when parameters are only zeroed.
    """

    masked: float
    zeroed: float
    tolerance: float
    differences: tuple[str, ...]

    @property
    def zeroing_is_removal(self) -> bool:
        """Whether the original function on zeroed parameters computes the same as the small one."""
        return self.zeroed <= self.tolerance

    @property
    def ok(self) -> bool:
        """Whether it equals the masked function, and the zeroed one or it is known why not."""
        return self.masked <= self.tolerance and (self.zeroing_is_removal or bool(self.differences))

    def __str__(self) -> str:
        lines = [
            f"small against masked function   {self.masked:.1e}",
            f"small against zeroed parameters {self.zeroed:.1e}",
            f"{'ok' if self.ok else 'NOT EQUAL'} at tolerance {self.tolerance:.0e}",
        ]
        if self.differences:
            lines.append("zeroing is not removal in")
            lines += [f"  {difference}" for difference in self.differences]
        return "\n".join(lines)


def verify(
    plan: Plan, fn: Callable, params: PyTree, inputs: tuple[Any, ...], tolerance: float
) -> Verification:
    """Compares the small function with the masked one and with `fn` on zeroed parameters."""
    model = analyse(fn, params, inputs, plan.state)
    keep = keep_of(model, plan.kept)
    zeroed = jax.tree.map(
        lambda x, m: _zeroed(x, m) if is_array_leaf(x) and m is not True else x, params, plan.masks(params)
    )

    def compiled(function: Callable, params: PyTree) -> list[Any]:
        """Output arrays; what is no array in the trees stays out of `jit`."""
        leaves, treedef = jax.tree.flatten((params, inputs))
        arrays = [x if is_array_leaf(x) else None for x in leaves]

        def flat(arrays):
            full = [x if array is None else array for x, array in zip(leaves, arrays, strict=True)]
            params, inputs = jax.tree.unflatten(treedef, full)
            return jax.tree.leaves(function(params, *inputs))

        return jax.jit(flat)(arrays)

    small = compiled(lambda p, *x: run(model, Small(keep), p, x), plan.shrink(params))
    masked = compiled(lambda p, *x: run(model, Masked(keep), p, x), params)
    original = compiled(fn, zeroed)
    axes = model.frame.outs
    masked = [take_kept(x, a, keep) for x, a in zip(masked, axes, strict=True)]
    original = [take_kept(x, a, keep) for x, a in zip(original, axes, strict=True)]
    against_masked, against_zeroed = _error(small, masked), _error(small, original)
    differences: tuple[str, ...] = ()
    if against_zeroed > tolerance:
        watch = _Watch(keep, tolerance)
        run(model, watch, zeroed, inputs)
        jax.effects_barrier()  # loops report while they run
        differences = tuple(watch.seen)
    return Verification(against_masked, against_zeroed, tolerance, differences)


def _zeroed(leaf: Any, mask: Any) -> Any:
    array = jnp.asarray(leaf)
    return jnp.where(mask, array, jnp.zeros_like(array))


class _Watch(Masked):
    """Runs the full function on zeroed parameters and notes the reductions that removed units change."""

    def __init__(self, keep: Any, tolerance: float):
        super().__init__(keep)
        self.tolerance = tolerance
        self.seen: dict[str, None] = {}

    def equation(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        results = bind(eqn, args)
        removed = self.mask_reduced(frame, eqn, args)
        if any(a is not b for a, b in zip(args, removed, strict=True)):
            axes = [frame.of(v) for v in eqn.outvars]
            wanted = [take_kept(x, a, self.keep) for x, a in zip(bind(eqn, removed), axes, strict=True)]
            got = [take_kept(x, a, self.keep) for x, a in zip(results, axes, strict=True)]
            self._compare(f"{eqn.primitive.name} at {frame.source(eqn)}", got, wanted)
        return results

    def _compare(self, name: str, got: list[Any], wanted: list[Any]) -> None:
        def note(error):
            if error > self.tolerance:
                self.seen[name] = None

        error = _error_traced(got, wanted)
        if isinstance(error, Tracer):  # inside a scan, a loop or a derivative rule
            jax.debug.callback(note, error)
        else:
            note(error)


def _error_traced(a: Sequence[Any], b: Sequence[Any]) -> Any:
    worst = jnp.zeros(())
    for x, y in zip(a, b, strict=True):
        if jnp.issubdtype(x.dtype, jnp.inexact) and x.size:
            same = (x == y) | (jnp.isnan(x) & jnp.isnan(y))
            scale = jnp.maximum(jnp.max(jnp.where(jnp.isfinite(y), jnp.abs(y), 0)), 1e-30)
            worst = jnp.maximum(worst, jnp.max(jnp.where(same, 0, jnp.abs(x - y))) / scale)
        elif x.size:
            worst = jnp.maximum(worst, jnp.any(x != y).astype(worst.dtype))
    return worst


def _error(a: Sequence[Any], b: Sequence[Any]) -> float:
    error = 0.0
    for x, y in zip(a, b, strict=True):
        if np.shape(x) != np.shape(y):
            return float("inf")
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            continue
        error = max(error, float(_error_traced([jnp.asarray(x)], [jnp.asarray(y)])))
    return error if error == error else float("inf")
