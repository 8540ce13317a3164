"""The small and the masked model: the traced jaxpr is evaluated again, with the kept units of every axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxprune.jax_compat import context_of
from jaxprune.jaxprs import bind, control_flow, shape_of
from jaxprune.surgery.inference.analysis import passes_whole
from jaxprune.surgery.inference.axes import Axes, Axis, size_of
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.inference.rules import RULES, Reduction, take_kept
from jaxprune.surgery.inference.rules.rule import kept_shape


class Small:
    """Evaluates with every array sliced to its kept units."""

    def __init__(self, keep: Keep):
        self.keep = keep
        self._touched: dict[int, bool] = {}

    def touches(self, frame: Frame) -> bool:
        """Whether any value of a call is cut. A call without cut values runs unchanged."""
        key = id(frame)
        if key not in self._touched:
            inner = (f for fs in frame.calls.values() for f in fs)
            axes = (*frame.axes.values(), *frame.uses.values())
            self._touched[key] = any(map(self.keep.cuts, axes)) or any(map(self.touches, inner))
        return self._touched[key]

    def constant(self, value: Any, axes: Axes) -> Any:
        return take_kept(value, axes, self.keep)

    def filled(self, number: Any, axes: Axes) -> Any:
        """An array of one number everywhere."""
        return jnp.broadcast_to(number, kept_shape(axes, self.keep))

    def equation(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        rule = RULES.get(eqn.primitive.name)
        ins, outs = frame.ins(eqn), [frame.of(v) for v in eqn.outvars]
        if rule is None or not any(map(self.keep.cuts, (*ins, *outs))):
            return bind(eqn, args)
        if id(eqn) in frame.routed:
            routed = frame.routed[id(eqn)]
            ins = ins if routed.ins is None else routed.ins
            args = [self._counted(x, routed.ranks.get(place)) for place, x in enumerate(args)]
        if rule.evaluate is not None:
            results = rule.evaluate(eqn, args, ins, outs, self.keep)
        else:
            params = rule.resize(eqn, ins, outs, self.keep) if rule.resize else {}
            results = bind(eqn, args, **params)
        for result, axes in zip(results, outs, strict=True):
            if np.shape(result) != kept_shape(axes, self.keep):
                raise RuntimeError(
                    f"{eqn.primitive.name} at {frame.source(eqn)} gives shape {np.shape(result)} in the "
                    f"small model where the axes say {kept_shape(axes, self.keep)}: please report this."
                )
        return results

    def _counted(self, positions: Any, axis: Axis | None) -> Any:
        """Positions of kept units on an axis, counted among the kept ones."""
        if axis is None or not self.keep.cuts([axis]):
            return positions
        mask = self.keep.mask(axis)
        return jnp.asarray(np.cumsum(mask) - mask, positions.dtype)[positions]


class Masked(Small):
    """Evaluates the full arrays; every reduction across units sees its identity at removed units."""

    def constant(self, value: Any, axes: Axes) -> Any:
        del axes
        return value

    def filled(self, number: Any, axes: Axes) -> Any:
        return jnp.broadcast_to(number, tuple(map(size_of, axes)))

    def equation(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        return bind(eqn, self.mask_reduced(frame, eqn, args))

    def reductions(
        self, frame: Frame, eqn: JaxprEqn, found: Sequence[Reduction], args: Sequence[Any]
    ) -> Sequence[Reduction]:
        """Those of an equation's reductions that are to be masked."""
        del frame, eqn, args
        return found

    def mask_reduced(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        """The operands with the identity of the reduction in place of removed units."""
        args = list(args)
        rule = RULES.get(eqn.primitive.name)
        if rule is None or rule.reduces is None:
            return args
        ins = frame.ins(eqn)
        for operand, dimensions, identity in self.reductions(frame, eqn, rule.reduces(eqn, ins), args):
            axes = ins[operand]
            for dim in dimensions:
                if self.keep.cuts([axes[dim]]):
                    shape = [1] * len(axes)
                    shape[dim] = -1
                    value = args[operand]
                    mask = self.keep.mask(axes[dim]).reshape(shape)
                    args[operand] = jnp.where(mask, value, identity(value.dtype))
        return args


class _Values:
    """The values of a call while it runs; constants are not sliced until they are used."""

    def __init__(self, frame: Frame, args: Sequence[Any], mode: Small):
        self.frame, self.mode = frame, mode
        self.values: dict[Any, Any] = dict(zip(frame.jaxpr.constvars, frame.consts, strict=True))
        self.values.update(zip(frame.jaxpr.invars, args, strict=True))
        self.numbers: dict[Any, Any] = {}  # constants that are one number everywhere -> that number

    def whole(self, atoms: Sequence[Any]) -> list[Any]:
        return [atom.val if isinstance(atom, Literal) else self.values[atom] for atom in atoms]

    def cut(self, atoms: Sequence[Any], axes: Sequence[Axes], whole: Sequence[bool] = ()) -> list[Any]:
        """The operands of an equation, cut to these axes; constants that are flagged as `whole` are not cut."""
        out = []
        flags = whole or [False] * len(axes)
        for atom, value, of, as_it_is in zip(atoms, self.whole(atoms), axes, flags, strict=True):
            if as_it_is or not self.frame.is_constant(atom):
                out.append(value)
            elif not isinstance(atom, Literal) and atom in self.numbers:
                out.append(self.mode.filled(self.numbers[atom], of))
            else:
                out.append(self.mode.constant(value, of))
        return out

    def constant(self, eqn: JaxprEqn) -> list[Any]:
        """The results of an equation on constants."""
        operands = self.whole(eqn.invars)
        results = bind(eqn, operands)
        if eqn.primitive.name in ("broadcast_in_dim", "convert_element_type"):
            number = operands[0] if shape_of(eqn.invars[0]) == () else None
            if not isinstance(eqn.invars[0], Literal):
                number = self.numbers.get(eqn.invars[0], number)
            if number is not None and not jnp.issubdtype(results[0].dtype, jax.dtypes.extended):
                self.numbers[eqn.outvars[0]] = jnp.asarray(number).astype(results[0].dtype)
        return results


def evaluate(frame: Frame, args: Sequence[Any], mode: Small, whole: bool = False) -> list[Any]:
    """Runs a call's jaxpr in a mode; constant results are cut, unless `whole` is set."""
    values = _Values(frame, args, mode)
    for index, eqn in enumerate(frame.jaxpr.eqns):
        with context_of(eqn):
            bodies = frame.calls.get(index, ())
            touched = any(map(mode.touches, bodies))
            if all(map(frame.is_constant, eqn.invars)):
                results = values.constant(eqn)
            elif touched and passes_whole(eqn):
                results = evaluate(bodies[0], values.whole(eqn.invars), mode, whole=True)
            elif touched:
                operands = values.cut(eqn.invars, frame.ins(eqn), frame.whole.get(index, ()))
                results = rebuilt(frame, index, operands, mode)
            elif bodies:
                results = bind(eqn, values.whole(eqn.invars))
            else:
                results = mode.equation(frame, eqn, values.cut(eqn.invars, frame.ins(eqn)))
        values.values.update(zip(eqn.outvars, results, strict=True))
    outs = frame.jaxpr.outvars
    return values.whole(outs) if whole else values.cut(outs, frame.outs)


def rebuilt(frame: Frame, index: int, args: Sequence[Any], mode: Small) -> list[Any]:
    """Runs the call at an equation with its bodies evaluated in a mode."""

    def evaluated(body: Frame) -> Callable[..., list[Any]]:
        return lambda *values: evaluate(body, values, mode)

    rule = None
    if index in frame.derivatives:
        derivative, of_rule = frame.derivatives[index]
        rule = derivative, evaluated(of_rule)
    return control_flow.rebuild(
        frame.jaxpr.eqns[index], args, [evaluated(b) for b in frame.calls[index]], rule
    )
