"""Uses of positions: what an equation makes of integers that are positions on an axis, by its primitive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from jaxprune.jaxprs import shape_of
from jaxprune.surgery.inference.axes import Axes, Reason, is_frozen, size_of, unify
from jaxprune.surgery.inference.frames import Choice, Frame, Routed
from jaxprune.surgery.inference.position_lookups import SCATTERS, dynamic_slice, gather, scatter
from jaxprune.surgery.inference.positions import (
    Columns,
    Held,
    Never,
    Shifted,
    freeze_positions,
    iota_dimension,
    is_never,
    number_of,
    unified,
)

COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"))
_SAME = frozenset(
    """
    reshape broadcast_in_dim squeeze expand_dims transpose slice rev tile split unstack copy copy_p stop_gradient
    convert_element_type name sharding_constraint layout_constraint reshard mesh_cast reduce_max reduce_min cummax
    cummin
    """.split()  # noqa: SIM905
)
_EACH = frozenset(("sort", "device_put", "optimization_barrier", "with_memory_space_constraint"))
_LOOKS = frozenset(
    ("check", "dce_sink", "debug_callback", "debug_print", "inspect_sharding", "shape_assertion")
)
_CHOICES = frozenset(("argmax", "argmin", "top_k"))
_WRITES = frozenset((*SCATTERS, "dynamic_update_slice"))  # the result has the axes of the first operand


def infer_with_positions(
    frame: Frame,
    eqn: JaxprEqn,
    ins: Sequence[Axes],
    reason: Reason,
    infer: Callable[[Sequence[Axes]], list[Axes]],
) -> list[Axes]:
    """The axes of an equation's results, given a function of the operands' axes that infers them without positions.

    Notes which results hold positions. Where an operand is indexed by positions on an axis, its own axis there is
    unified with this one.
    """
    name = eqn.primitive.name
    facts = [frame.fact(v) for v in eqn.invars]
    if name in _CHOICES:
        if name == "top_k" or not isinstance(facts[0], Held):  # their order is that of the small function's
            freeze_positions(facts, reason, f"are used as numbers in {name}")
        outs = infer(ins)
        _choose(frame, eqn, ins[0], reason)
        return outs
    if all(fact is None for fact in facts):
        return infer(ins)
    use = _USES.get(name) or (_same if name in _SAME else _each if name in _EACH else None)
    seen = list(ins)
    found = use(frame, eqn, seen, facts, reason) if use else None
    if found is None:
        if name not in _LOOKS:
            compared = (
                "are compared with other numbers" if name in COMPARISONS else f"are used as numbers in {name}"
            )
            freeze_positions(facts, reason, compared)
        return infer(ins)
    frame.facts.update((v, fact) for v, fact in zip(eqn.outvars, found, strict=True) if fact is not None)
    outs = infer(seen)
    return [ins[0]] if seen[0] is not ins[0] and name in _WRITES else outs


def _choose(frame: Frame, eqn: JaxprEqn, axes: Axes, reason: Reason) -> None:
    """argmax and top_k: the integers among the results are positions on the axis that is searched."""
    if eqn.primitive.name == "top_k":
        dim, count, positions = eqn.params.get("axis", -1) % len(axes), eqn.params["k"], eqn.outvars[1]
    else:
        (dim,), count, (positions,) = eqn.params["axes"], 1, eqn.outvars
    if is_frozen(axes[dim]):
        return
    frame.facts[positions] = Held(axes[dim])
    frame.choices[id(eqn)] = Choice(axes[dim], count, reason)


# Each use returns the facts about the results, or None if it is none that keeps positions what they are. Its list
# of operands' axes may be changed: to those with which the equation is inferred and run on smaller arrays.


def _same(frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason) -> list[Any] | None:
    fact = facts[0]
    if any(f is not None for f in facts[1:]):
        return None
    if not isinstance(fact, Never) and not jnp.issubdtype(
        getattr(eqn.outvars[0].aval, "dtype", float), jnp.integer
    ):
        return None
    if isinstance(fact, Columns) and not _keeps_columns(eqn):
        return None
    return [fact] * len(eqn.outvars)


def _keeps_columns(eqn: JaxprEqn) -> bool:
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    match eqn.primitive.name:
        case "reshape":
            return before[-1:] == after[-1:] and eqn.params["dimensions"] is None
        case "broadcast_in_dim":
            dims = eqn.params["broadcast_dimensions"]
            return bool(dims) and dims[-1] == len(after) - 1 and before[-1] == after[-1]
    return eqn.primitive.name in ("convert_element_type", "copy", "stop_gradient", "name")


def _each(frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason) -> list[Any] | None:
    del frame, ins, reason
    return list(facts) if not any(isinstance(fact, Shifted | Columns) for fact in facts) else None


def _compare(
    frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason
) -> list[Any] | None:
    if all(isinstance(fact, Held) for fact in facts):
        return [None] if unified(facts, reason) else None
    place = next((i for i, fact in enumerate(facts) if isinstance(fact, Held)), None)
    if place is None:
        return None
    held, other, name = facts[place], 1 - place, eqn.primitive.name.removesuffix("_to")
    size = size_of(held.axis)
    number = number_of(frame, eqn.invars[other])
    if number is not None:
        name = name if place == 0 else {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le"}.get(name, name)
        last = number if name in ("lt", "ge") else number + 1  # positions from here on compare otherwise
        outside = number < 0 or number >= size if name in ("eq", "ne") else last <= 0 or last >= size
        never = not held.below and ((name == "lt" and number <= 0) or (name == "le" and number < 0))
        return [Never() if never else None] if outside else None
    dim = iota_dimension(frame, eqn.invars[other], size)
    if dim is None:
        return None
    unify(ins[other][dim], held.axis, reason)
    frame.routed[id(eqn)] = Routed(None, {other: held.axis}, (held.axis,))
    return [None]


def _select(
    frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason
) -> list[Any] | None:
    del ins
    first, *cases = facts
    if isinstance(first, Never):
        return [cases[0]]
    if first is not None:
        return None
    return _joined(frame, eqn.invars[1:], cases, reason)


def _joined(frame: Frame, atoms: Sequence[Any], facts: Sequence[Any], reason: Reason) -> list[Any] | None:
    """Values from several operands: positions on one axis, or numbers outside of it."""
    held = [fact for fact in facts if isinstance(fact, Held)]
    if not held:
        return [Never()] if all(map(is_never, facts)) else None
    size = size_of(held[0].axis)
    below = beyond = False
    for atom, fact in zip(atoms, facts, strict=True):
        if isinstance(fact, Held):
            continue
        number = number_of(frame, atom) if fact is None else None
        if number is None or 0 <= number < size:
            return None
        below, beyond = below or number < 0, beyond or number >= size
    fact = unified(held, reason)
    return [fact._replace(below=fact.below or below, beyond=fact.beyond or beyond)] if fact else None


def _concatenate(
    frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason
) -> list[Any] | None:
    del ins
    if all(isinstance(fact, Held) for fact in facts):
        joined = _joined(frame, eqn.invars, facts, reason)
        return joined * len(eqn.outvars) if joined else None
    last = len(shape_of(eqn.outvars[0])) - 1
    widths = [shape_of(v)[-1] if shape_of(v) else 0 for v in eqn.invars]
    if eqn.params.get("dimension") == last and all(
        fact is None or width == 1 or isinstance(fact, Columns)
        for fact, width in zip(facts, widths, strict=True)
    ):
        columns: list[Held | None] = []
        for fact, width in zip(facts, widths, strict=True):
            if isinstance(fact, Shifted):
                return None
            columns.extend(fact.columns if isinstance(fact, Columns) else (fact,) * width)
        return [Columns(tuple(columns))]
    return _joined(frame, eqn.invars, facts, reason)


def _pad(frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason) -> list[Any] | None:
    del ins
    return _joined(frame, eqn.invars, facts, reason)


def _shift(
    frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason
) -> list[Any] | None:
    del ins, reason
    first, second = facts
    if isinstance(first, Held) and second is None and number_of(frame, eqn.invars[1]) is not None:
        return [Shifted(first.axis)]
    if isinstance(second, Held) and first is None and number_of(frame, eqn.invars[0]) is not None:
        return [Shifted(second.axis)]
    return None


def _bound(
    frame: Frame, eqn: JaxprEqn, ins: list[Axes], facts: list[Any], reason: Reason
) -> list[Any] | None:
    """max, min and clamp by numbers that leave every position as it is."""
    del ins
    held = next((fact for fact in facts if isinstance(fact, Held)), None)
    if held is None:
        return None
    if all(isinstance(fact, Held) for fact in facts):
        fact = unified(facts, reason)
        return [fact] if fact else None
    numbers = [
        number_of(frame, v) if fact is None else None for v, fact in zip(eqn.invars, facts, strict=True)
    ]
    if eqn.primitive.name == "clamp":
        lows, highs, is_middle = [numbers[0]], [numbers[2]], isinstance(facts[1], Held)
    else:
        number, is_middle = next((n for n in numbers if n is not None), None), True
        lows, highs = ([number], []) if eqn.primitive.name == "max" else ([], [number])
    last = size_of(held.axis) - 1
    fits = all(n is not None and (n < 0 or (n == 0 and not held.below)) for n in lows)
    fits = fits and all(n is not None and (n > last or (n == last and not held.beyond)) for n in highs)
    return [held] if is_middle and fits else None


_USES: Mapping[str, Callable[..., list[Any] | None]] = MappingProxyType(
    {
        **dict.fromkeys(COMPARISONS, _compare),
        "select_n": _select,
        **dict.fromkeys(("concatenate", "stack"), _concatenate),
        "pad": _pad,
        **dict.fromkeys(("add", "sub"), _shift),
        **dict.fromkeys(("max", "min", "clamp"), _bound),
        "gather": gather,
        **dict.fromkeys(SCATTERS, scatter),
        **dict.fromkeys(("dynamic_slice", "dynamic_update_slice"), dynamic_slice),
    }
)
