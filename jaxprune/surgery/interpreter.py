"""The small and the masked model: the traced jaxpr, evaluated anew with what the axes say is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util  # keeps the source lines of the user's equations
from jax.extend.core import JaxprEqn, Literal

from jaxprune.surgery import calls
from jaxprune.surgery.analysis import Frame, passes_whole
from jaxprune.surgery.axes import Axes, size_of
from jaxprune.surgery.kept import Keep
from jaxprune.surgery.rules import RULES, take_kept
from jaxprune.surgery.rules.rule import kept_shape


class Small:
    """Evaluates with every array sliced to its kept units."""

    def __init__(self, keep: Keep):
        self.keep = keep
        self._touched: dict[int, bool] = {}

    def touches(self, frame: Frame) -> bool:
        """Whether any value of a call is cut: what is not runs as it was written."""
        key = id(frame)
        if key not in self._touched:
            inner = (f for fs in frame.calls.values() for f in fs)
            axes = (*frame.axes.values(), *frame.uses.values())
            self._touched[key] = any(map(self.keep.cuts, axes)) or any(map(self.touches, inner))
        return self._touched[key]

    def constant(self, value: Any, axes: Axes) -> Any:
        return take_kept(value, axes, self.keep)

    def equation(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        rule = RULES.get(eqn.primitive.name)
        ins, outs = frame.ins(eqn), [frame.of(v) for v in eqn.outvars]
        if rule is None or not any(map(self.keep.cuts, (*ins, *outs))):
            return bind(eqn, args)
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


class Masked(Small):
    """Evaluates the full arrays, with every reduction across units seeing its identity at removed ones."""

    def constant(self, value: Any, axes: Axes) -> Any:
        del axes
        return value

    def equation(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        return bind(eqn, self.mask_reduced(frame, eqn, args))

    def mask_reduced(self, frame: Frame, eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
        """The operands with the identity of the reduction in place of removed units."""
        args = list(args)
        rule = RULES.get(eqn.primitive.name)
        if rule is None or rule.reduces is None:
            return args
        ins = frame.ins(eqn)
        for operand, dimensions, identity in rule.reduces(eqn, ins):
            axes = ins[operand]
            for dim in dimensions:
                if self.keep.size(axes[dim]) != size_of(axes[dim]):
                    shape = [1] * len(axes)
                    shape[dim] = -1
                    value = args[operand]
                    mask = self.keep.mask(axes[dim]).reshape(shape)
                    args[operand] = jnp.where(mask, value, identity(value.dtype))
        return args


def evaluate(frame: Frame, args: Sequence[Any], mode: Small, whole: bool = False) -> list[Any]:
    """Runs a call's jaxpr in a mode; results that are constant come out cut, or `whole`."""
    values: dict[Any, Any] = dict(zip(frame.jaxpr.constvars, frame.consts, strict=True))
    values.update(zip(frame.jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    def cut(atoms: Sequence[Any], axes: Sequence[Axes]) -> list[Any]:
        return [
            mode.constant(read(v), a) if frame.is_constant(v) else values[v]
            for v, a in zip(atoms, axes, strict=True)
        ]

    for index, eqn in enumerate(frame.jaxpr.eqns):
        scope = source_info_util.current_name_stack() + eqn.source_info.name_stack
        with source_info_util.user_context(eqn.source_info.traceback, name_stack=scope), eqn.ctx.manager:
            bodies = frame.calls.get(index)
            if all(map(frame.is_constant, eqn.invars)):
                results = bind(eqn, [read(v) for v in eqn.invars])
            elif bodies and passes_whole(eqn):
                operands = [read(v) for v in eqn.invars]
                touched = mode.touches(bodies[0])
                results = evaluate(bodies[0], operands, mode, True) if touched else bind(eqn, operands)
            else:
                operands = cut(eqn.invars, frame.ins(eqn))
                if not bodies:
                    results = mode.equation(frame, eqn, operands)
                elif any(map(mode.touches, bodies)):
                    results = calls.rebuild(frame, index, eqn, operands, mode, evaluate)
                else:
                    results = bind(eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    outs = frame.jaxpr.outvars
    return [read(v) for v in outs] if whole else cut(outs, frame.outs)


def bind(eqn: JaxprEqn, args: Sequence[Any], **changed: Any) -> list[Any]:
    """Applies an equation's primitive, with some of its parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    outs = eqn.primitive.bind(*args, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]
