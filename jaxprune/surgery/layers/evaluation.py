"""Running a traced function anew with branches bypassed, scaled or watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxprune.jax_compat import context_of
from jaxprune.jaxprs import Traced, bind, is_array_leaf
from jaxprune.jaxprs.calls import bodies_of, is_inline, kind_of, scan_parts
from jaxprune.jaxprs.equations import literal_value, walk
from jaxprune.surgery.layers.graph import Place

MISSING: Any = object()  # in place of what nothing uses
_NO_SWAPS: Mapping[Place, Place] = MappingProxyType({})


class Mode(Protocol):
    """What runs in place of some equations.

    opened: calls that are evaluated equation by equation; dead: equations that are left out; noted_for_swaps: the
    equations whose results stand in for others, which are noted here; equation: (place, equation, operands) ->
    results.
    """

    opened: set[Place]
    dead: frozenset[Place]
    rematerializes: bool
    noted_for_swaps: dict[Place, Any]

    def equation(self, place: Place, eqn: JaxprEqn, args: list[Any]) -> Sequence[Any]: ...


def run(traced: Traced, params: Sequence[Any], inputs: Any, mode: Mode) -> Any:
    """The results of a traced function in a mode.

    Args:
      traced: the function.
      params: its parameter arrays in order, `MISSING` where nothing uses one.
      inputs: pytree of its inputs.
      mode: what runs in place of some equations.
    """
    arrays = [x if x is MISSING else jnp.asarray(x) for x in params]
    arrays += [jnp.asarray(x) for x in jax.tree.leaves(inputs) if is_array_leaf(x)]
    outs = evaluate(traced.jaxpr, (), [*traced.consts, *arrays], mode, ())
    return jax.tree.unflatten(traced.out_tree, outs)


def evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], mode: Mode, place: Place) -> list[Any]:
    """Runs a jaxpr in a mode; results that nothing uses are `MISSING`."""

    def equation(index: int, eqn: JaxprEqn, args: list[Any]) -> Sequence[Any]:
        at = (*place, index)
        if at in mode.dead:
            return [MISSING] * len(eqn.outvars)
        with context_of(eqn):
            if is_inline(eqn) and (at in mode.opened or any(x is MISSING for x in args)):
                return _call(eqn, args, mode, at)
            outs = mode.equation(at, eqn, args)
            if at in mode.noted_for_swaps:
                mode.noted_for_swaps[at] = outs[0]
            return outs

    return walk(jaxpr, consts, args, _literal, equation)


def _call(eqn: JaxprEqn, args: list[Any], mode: Mode, place: Place) -> list[Any]:
    """Runs the body of a call in a mode; what is rematerialized stays so."""
    (body,) = bodies_of(eqn)
    inner = body.of(args)
    if kind_of(eqn) != "remat" or not mode.rematerializes:
        return evaluate(body.jaxpr, body.consts, inner, mode, place)
    there = [x is not MISSING for x in inner]
    left: list[bool] = []

    def present(*values: Any) -> list[Any]:
        given = iter(values)
        full = [next(given) if flag else MISSING for flag in there]
        outs = evaluate(body.jaxpr, body.consts, full, mode, place)
        left[:] = [x is not MISSING for x in outs]
        return [x for x in outs if x is not MISSING]

    kept = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    outs = iter(jax.checkpoint(present, **kept)(*(x for x in inner if x is not MISSING)))
    return [next(outs) if flag else MISSING for flag in left]


def _literal(atom: Literal) -> Any:
    value = literal_value(atom)
    is_number = isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic)
    return np.asarray(value, getattr(atom.aval, "dtype", None)) if is_number else value


def around(places: Iterable[Place]) -> set[Place]:
    """The calls that equations lie in."""
    return {place[:depth] for place in places for depth in range(1, len(place))}


class Bypassed:
    """Leaves out the operands of additions, the steps of scans and all that nothing uses any more."""

    rematerializes = True

    def __init__(
        self,
        drops: Mapping[Place, frozenset[int]],
        steps: Mapping[Place, np.ndarray],
        dead: frozenset[Place],
        swaps: Mapping[Place, Place] = _NO_SWAPS,
    ):
        self.drops, self.steps, self.dead, self.swaps = drops, steps, dead - swaps.keys(), swaps
        self.noted_for_swaps = dict.fromkeys(swaps.values())
        self.opened = around((*drops, *steps, *swaps, *swaps.values()))

    def equation(self, place: Place, eqn: JaxprEqn, args: list[Any]) -> Sequence[Any]:
        if place in self.drops:
            left = [x for operand, x in enumerate(args) if operand not in self.drops[place]]
            (out,) = eqn.outvars
            return left or [jnp.zeros(out.aval.shape, out.aval.dtype)]  # type: ignore[attr-defined]
        if place in self.swaps:
            return [self.noted_for_swaps[self.swaps[place]]]
        if place in self.opened or place in self.steps:
            return _scan(eqn, args, self.steps.get(place), self, place)
        return bind(eqn, args)


class Scaled:
    """Multiplies the operands of additions, and what steps of scans change, by numbers that may be traced."""

    rematerializes = True
    dead: frozenset[Place] = frozenset()

    def __init__(
        self,
        drops: Mapping[Place, Mapping[int, Any]],
        steps: Mapping[Place, Any],
        swaps: Mapping[Place, tuple[Place, Any]],
    ):
        self.drops, self.steps, self.swaps = drops, steps, swaps
        self.noted_for_swaps = {before: None for before, _ in swaps.values()}
        self.opened = around((*drops, *steps, *swaps, *self.noted_for_swaps))

    def equation(self, place: Place, eqn: JaxprEqn, args: list[Any]) -> Sequence[Any]:
        for operand, scale in self.drops.get(place, {}).items():
            args[operand] = _times(scale, args[operand])
        if place in self.opened or place in self.steps:
            change = (_between, self.steps[place]) if place in self.steps else None
            return _scan(eqn, args, None, self, place, change)
        if place in self.swaps:
            before, scale = self.swaps[place]
            return _between(scale, [self.noted_for_swaps[before]], bind(eqn, args))
        return bind(eqn, args)


class Watched:
    """Notes what each addition and each step of a scan is given and gives."""

    rematerializes = False  # what is noted must leave the call
    dead: frozenset[Place] = frozenset()

    def __init__(
        self,
        drops: Iterable[Place],
        steps: Iterable[Place],
        measure: Callable[[Any, Any], Any],
        swaps: Mapping[Place, Place] = _NO_SWAPS,
    ):
        self.drops, self.steps, self.measure, self.swaps = set(drops), set(steps), measure, swaps
        self.noted_for_swaps = dict.fromkeys(swaps.values())
        self.opened = around((*self.drops, *self.steps, *swaps, *swaps.values()))
        self.sums: dict[Place, tuple[list[Any], Any]] = {}
        self.swapped: dict[Place, tuple[Any, Any]] = {}
        self.stacked: dict[Place, tuple[list[Any], Any]] = {}  # in the bodies of scans
        self.scans: dict[Place, Any] = {}

    def equation(self, place: Place, eqn: JaxprEqn, args: list[Any]) -> Sequence[Any]:
        if place in self.opened or place in self.steps:
            return self._inside(eqn, args, place)
        outs = bind(eqn, args)
        if place in self.drops:
            self.sums[place] = list(args), outs[0]
        if place in self.swaps:
            self.swapped[place] = self.noted_for_swaps[self.swaps[place]], outs[0]
        return outs

    def _inside(self, eqn: JaxprEqn, args: list[Any], place: Place) -> Sequence[Any]:
        """Runs a scan; what is noted in its body is stacked, and measured of each step."""
        steps: list[Any] = []

        def noted(before: list[Any], after: list[Any]) -> Any:
            at = next(i for i, x in enumerate(before) if jnp.issubdtype(x.dtype, jnp.floating))
            measured = self.measure(before[at], after[at]) if place in self.steps else ()
            inside = {at: self.sums.pop(at) for at in list(self.sums) if at[: len(place)] == place}
            return measured, inside

        outs = _scan(eqn, args, None, self, place, None, noted, steps)
        ((measured, inside),) = steps
        if place in self.steps:
            self.scans[place] = measured
        self.stacked.update(inside)
        return outs


class Tapped:
    """Runs another mode and notes the results of some equations."""

    rematerializes = False  # what is noted must leave the call

    def __init__(self, mode: Mode, places: Iterable[Place]):
        self.mode, self.places, self.dead = mode, set(places), mode.dead
        self.opened = mode.opened | around(self.places)
        self.noted_for_swaps = mode.noted_for_swaps
        self.noted: dict[Place, list[Any]] = {}

    def equation(self, place: Place, eqn: JaxprEqn, args: list[Any]) -> Sequence[Any]:
        outs = self.mode.equation(place, eqn, args)
        if place in self.places:
            self.noted[place] = list(outs)
        return outs


def _scan(
    eqn: JaxprEqn,
    args: Sequence[Any],
    kept: np.ndarray | None,
    mode: Mode,
    place: Place,
    change: tuple[Callable[[Any, list[Any], list[Any]], list[Any]], Any] | None = None,
    note: Callable[[list[Any], list[Any]], Any] | None = None,
    notes: list[Any] | None = None,
) -> list[Any]:
    """Runs a scan over some of its steps, or over all, with its body in a mode.

    Args:
      eqn, args: the scan and its operands, `MISSING` where the body uses one no more.
      kept: which steps run.
      mode: how the body runs.
      place: the scan's place.
      change: function (number, carry before a step, carry after it) -> carry, and the numbers of the steps.
      note: function (carry before a step, carry after it) -> what is noted of it.
      notes: gets what is noted, stacked.
    """
    p, (consts, carry, xs) = eqn.params, scan_parts(eqn, args)
    (body,) = bodies_of(eqn)
    length, count = p["length"], len(carry)
    there = [x is not MISSING for x in xs]
    given = [x for x in xs if x is not MISSING]
    if kept is not None:
        # The parameters come without the slices already; what else is scanned over loses them here.
        given = [x[np.flatnonzero(kept)] if np.shape(x)[0] == length else x for x in given]
        length = int(kept.sum())

    def step(carry: list[Any], scanned: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
        values, scale = iter(scanned[0]), scanned[1]
        inner = body.of([*consts, *carry, *(next(values) if flag else MISSING for flag in there)])
        outs = evaluate(body.jaxpr, body.consts, inner, mode, place)
        after = list(outs[:count]) if change is None else change[0](scale, carry, outs[:count])
        return after, (outs[count:], () if note is None else note(carry, after))

    unroll = max(1, min(int(p["unroll"]), length))
    scales = () if change is None else change[1]
    after, (ys, noted) = lax.scan(
        step, list(carry), (given, scales), length, reverse=p["reverse"], unroll=unroll
    )
    if notes is not None:
        notes.append(noted)
    return [*after, *ys]


def _times(scale: Any, value: Any) -> Any:
    """The product, which is zero where the scale is, whatever the value."""
    scaled = value * jnp.asarray(scale, value.dtype)
    return jnp.where(scale == 0, jnp.zeros_like(value), scaled)


def _between(scale: Any, before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """What a step gives, exactly at 1 and 0, and on the line between them for floats."""

    def one(old: Any, new: Any) -> Any:
        if jnp.issubdtype(new.dtype, jnp.inexact):
            new = new + (jnp.asarray(scale, new.dtype) - 1) * (new - old)
        return jnp.where(scale == 0, old, new)

    return [one(old, new) for old, new in zip(before, after, strict=True)]
