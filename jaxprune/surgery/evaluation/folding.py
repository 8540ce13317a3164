"""Folding: constant contributions of removed units are moved into the biases that follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import bind, is_array_leaf
from jaxprune.jaxprs.calls import is_inline
from jaxprune.jaxprs.equations import walk
from jaxprune.params import PyTree, flatten_with_paths, is_float_array
from jaxprune.surgery.evaluation.interpreter import Masked, rebuilt
from jaxprune.surgery.inference.axes import Axes
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.model import KeptAxes, State, analyse, keep_of
from jaxprune.surgery.inference.rules import RULES

_LAYOUT = frozenset(("broadcast_in_dim", "convert_element_type", "copy", "reshape", "squeeze", "transpose"))
_LINEAR = _LAYOUT | {"add", "add_any", "sub", "neg", "concatenate", "slice", "split", "reduce_window_sum"}
_SUMS = frozenset(("dot_general", "conv_general_dilated", "reduce_sum"))


class _Bias(NamedTuple):
    """A value that is one parameter in another layout."""

    path: str
    parameter: Any
    layout: Callable[[Any], Any]


class _Value(NamedTuple):
    """A value of the full model, and its difference from the small model: `offset`, which comes from `source`."""

    array: Any
    bias: _Bias | None = None
    offset: Any = None
    source: str = ""


def fold_constants(
    fn: Callable,
    params: PyTree,
    inputs: tuple[Any, ...],
    kept: KeptAxes,
    state: State | None,
    tolerance: float,
) -> PyTree:
    """The full parameters, with biases that compensate removed units that are constants."""
    model = analyse(fn, params, inputs, state)
    paths, leaves, treedef = flatten_with_paths(params)
    folding = _Folding(keep_of(model, kept), tolerance)
    args = [_Value(const) for const in model.traced.consts]
    for path, leaf in zip(paths, leaves, strict=True):
        if is_array_leaf(leaf):
            array = jnp.asarray(leaf)
            args.append(_Value(array, _Bias(path, array, lambda x: x) if is_float_array(leaf) else None))
    args += [_Value(jnp.asarray(x)) for x in jax.tree.leaves(inputs) if is_array_leaf(x)]
    for value in folding.run(model.frame, args):
        folding.count(value)
        if value.offset is not None:
            raise folding.refusal(value.source, "reaches an output before a bias is added to it")
    for path in folding.deltas:
        if folding.uses[path] > 1:
            raise ValueError(
                f"removed units can't be folded into {path!r}: it is used in {folding.uses[path]} places."
            )
    return jax.tree.unflatten(
        treedef,
        [
            leaf + folding.deltas[path].astype(leaf.dtype) if path in folding.deltas else leaf
            for path, leaf in zip(paths, leaves, strict=True)
        ],
    )


@dataclass
class _Folding:
    """One run of the full model that follows the contributions missing in the small one until they reach a bias."""

    keep: Keep
    tolerance: float
    deltas: dict[str, Any] = field(default_factory=dict)
    uses: dict[str, int] = field(default_factory=dict)

    def refusal(self, source: str, why: str) -> ValueError:
        return ValueError(f"removed units can't be folded: what they add to {source} {why}.")

    def count(self, value: _Value) -> None:
        """Counts a use of the parameter, if the value is a parameter."""
        if value.bias is not None:
            self.uses[value.bias.path] = self.uses.get(value.bias.path, 0) + 1

    def run(self, frame: Frame, args: Sequence[_Value]) -> list[_Value]:
        def equation(index: int, eqn: JaxprEqn, operands: list[_Value]) -> list[_Value]:
            with eqn.ctx.manager:
                return self.equation(frame, index, eqn, operands)

        consts = [_Value(c) for c in frame.consts]
        return walk(frame.jaxpr, consts, args, lambda literal: _Value(jnp.asarray(literal.val)), equation)

    def equation(self, frame: Frame, index: int, eqn: JaxprEqn, ins: Sequence[_Value]) -> list[_Value]:
        name = eqn.primitive.name
        if index in frame.calls and is_inline(eqn):
            return self.run(frame.calls[index][0], ins)
        arrays = [value.array for value in ins]
        results = bind(eqn, arrays)
        if name in _LAYOUT and ins[0].bias is not None:
            path, parameter, layout = ins[0].bias
            bias = _Bias(path, parameter, lambda x: bind(eqn, [layout(x), *arrays[1:]])[0])
            return [_Value(results[0], bias)]
        for value in ins:
            self.count(value)
        source = next((value.source for value in ins if value.offset is not None), "")
        if name in _SUMS:
            return self._sum(frame, eqn, ins, results)
        if not source:
            self._check_unchanged(frame, index, eqn, arrays, results)
            return [_Value(result) for result in results]
        if name in ("mul", "div"):
            first, second = ins
            if second.offset is None or (first.offset is None and name == "mul"):
                pair = [first.array if first.offset is None else first.offset]
                pair.append(second.array if second.offset is None else second.offset)
                return [_Value(results[0], None, bind(eqn, pair)[0], source)]
        if name not in _LINEAR:
            raise self.refusal(
                source, f"goes into {name} at {frame.source(eqn)} before a bias is added to it"
            )
        offsets = bind(eqn, [jnp.zeros_like(v.array) if v.offset is None else v.offset for v in ins])
        if name in ("add", "add_any", "sub"):
            for value, sign in zip(ins, (1, -1 if name == "sub" else 1), strict=True):
                if value.bias is not None:
                    self._fold(value.bias, sign * offsets[0], results[0], source)
                    return [_Value(results[0])]
        return [_Value(r, None, offset, source) for r, offset in zip(results, offsets, strict=True)]

    def _sum(
        self, frame: Frame, eqn: JaxprEqn, ins: Sequence[_Value], results: Sequence[Any]
    ) -> list[_Value]:
        """A sum over units: the small model lacks the removed units, and the offsets of the kept ones."""
        axes = frame.ins(eqn)
        where = f"{eqn.primitive.name} at {frame.source(eqn)}"
        changed = [i for i, value in enumerate(ins) if value.offset is not None]
        if len(changed) == 2:
            raise self.refusal(ins[0].source, f"goes into {where} on both sides")
        i = changed[0] if changed else 0
        reduces = RULES[eqn.primitive.name].reduces
        dims = [d for r in (reduces(eqn, axes) if reduces else ()) if r.operand == i for d in r.dimensions]
        cut = [dim for dim in dims if self.keep.cuts([axes[i][dim]])]
        if not cut and not changed:
            return [_Value(result) for result in results]
        lacking = jnp.zeros_like(ins[i].array) if ins[i].offset is None else ins[i].offset
        kept = self._mask(axes[i], cut)
        operands = [value.array for value in ins]
        operands[i] = jnp.where(kept, lacking, ins[i].array)
        offset = jnp.where(self._mask(frame.of(eqn.outvars[0])), bind(eqn, operands)[0], 0)
        if self._size(offset) <= self.tolerance * self._size(results[0]):
            return [_Value(results[0])]
        return [_Value(results[0], None, offset, where)]

    def _fold(self, bias: _Bias, offset: Any, result: Any, source: str) -> None:
        """Solves layout(delta) = offset for delta, where the layout may broadcast."""

        def layout(x: Any) -> Any:
            return jnp.broadcast_to(bias.layout(x), offset.shape)

        transposed = jax.linear_transpose(layout, bias.parameter)
        ones = transposed(jnp.ones_like(offset))[0]
        delta = transposed(offset)[0] / jnp.maximum(ones, 1)
        if not self._size(layout(delta) - offset) <= self.tolerance * self._size(result):  # NaN is refused
            raise self.refusal(
                source,
                f"is not one number for each entry of {bias.path!r}: either it is not constant, or zero padding "
                "changes it at the border",
            )
        self.deltas[bias.path] = self.deltas.get(bias.path, 0) + delta

    def _check_unchanged(
        self, frame: Frame, index: int, eqn: JaxprEqn, arrays: list[Any], results: list[Any]
    ) -> None:
        """Raises unless other reductions, loops and branches give the same result without the removed units."""
        masked = Masked(self.keep)
        bodies = frame.calls.get(index, ())
        if bodies:
            if not any(map(masked.touches, bodies)):
                return
            wanted = rebuilt(frame, index, arrays, masked)
        else:
            removed = masked.mask_reduced(frame, eqn, arrays)
            if all(a is b for a, b in zip(arrays, removed, strict=True)):
                return
            wanted = bind(eqn, removed)
        for var, a, b in zip(eqn.outvars, results, wanted, strict=True):
            if not is_float_array(a):
                equal = bool(jnp.all((a == b) | ~self._mask(frame.of(var))))
            else:
                difference = jnp.where(self._mask(frame.of(var)) & (a != b), a - b, 0)
                equal = self._size(difference) <= self.tolerance * self._size(a)
            if not equal:
                where = f"{eqn.primitive.name} at {frame.source(eqn)}"
                raise self.refusal(where, "changes it in a way that no bias can")

    def _mask(self, axes: Axes, dims: Sequence[int] | None = None) -> Any:
        """The mask of an array's kept units, along the given dimensions or all of them."""
        mask: Any = np.ones((1,) * len(axes), bool)
        for dim in range(len(axes)) if dims is None else dims:
            if self.keep.cuts([axes[dim]]):
                shape = [1] * len(axes)
                shape[dim] = -1
                mask = mask & self.keep.mask(axes[dim]).reshape(shape)
        return mask

    def _size(self, array: Any) -> float:
        return float(jnp.max(jnp.abs(array.astype(jnp.float32)))) if array.size else 0.0
