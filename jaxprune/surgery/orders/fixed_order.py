"""Groups whose units must stay in their order, and why.

Removing units keeps the order of the others, so the axes that inference unifies may still tell units apart: by
a constant that differs between them (a RoPE angle), by a sum that runs along them, by their random numbers, or by the
positions that a router chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal

from jaxprune.jaxprs import shape_of
from jaxprune.surgery.inference.axes import Atom, Axes, Axis, leaves_of
from jaxprune.surgery.inference.frames import Frame
from jaxprune.surgery.inference.kept import slices
from jaxprune.surgery.inference.model import Model
from jaxprune.surgery.inference.rules.pointwise import RULES as POINTWISE

_CUMULATIVE = frozenset(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"))


def fixed_orders(model: Model, atoms: Set[Atom]) -> dict[Atom, str]:
    """Those of the atoms whose order matters to the function, with the reason."""
    found: dict[Atom, str] = {atom: "a router chooses among them" for atom in model.chosen if atom in atoms}

    def fix(axes: Iterable[Axis], reason: str) -> None:
        for axis in axes:
            for atom in leaves_of(axis):
                if atom in atoms:
                    found.setdefault(atom, reason)

    for frame in _frames(model.frame):
        eqns = {id(eqn): eqn for eqn in frame.jaxpr.eqns}
        for routed in frame.routed.values():
            fix(routed.units, "a router chooses among them")
        for (by, place), axes in frame.uses.items():
            of = frame.jaxpr.outvars if by is None else eqns[by].invars
            where = "the outputs" if by is None else _at(frame, eqns[by])
            for atom in _told_apart(frame, of[place], axes, atoms - found.keys()):
                found[atom] = f"a constant differs between them in {where}"
        for eqn in frame.jaxpr.eqns:
            name = eqn.primitive.name
            if name in _CUMULATIVE:
                fix([frame.ins(eqn)[0][eqn.params["axis"]]], f"a sum runs along them in {_at(frame, eqn)}")
            elif name.startswith(("random_", "threefry", "rng_")):
                axes = [axis for var in eqn.outvars if not frame.is_constant(var) for axis in frame.of(var)]
                fix(axes, f"each has random numbers of its own in {_at(frame, eqn)}")
    return found


def _at(frame: Frame, eqn: JaxprEqn) -> str:
    where = str(frame.source(eqn))
    return f"{eqn.primitive.name!r} at {where}" if where else repr(eqn.primitive.name)


def _frames(frame: Frame) -> Iterator[Frame]:
    yield frame
    for inner in (*frame.calls.values(), *((rule,) for _, rule in frame.derivatives.values())):
        for call in inner:
            yield from _frames(call)


def _told_apart(frame: Frame, constant: Any, axes: Axes, atoms: Set[Atom]) -> Iterator[Atom]:
    """The atoms along which a constant is not the same everywhere."""
    for dim, axis in enumerate(axes):
        here = [atom for atom in dict.fromkeys(leaves_of(axis)) if atom in atoms]
        if not here or _is_uniform(frame, constant, dim):
            continue
        value = frame.value(constant)
        if value is None or jnp.issubdtype(value.dtype, jax.dtypes.extended):
            yield from here  # too large to read, or keys
            continue
        along = np.moveaxis(np.asarray(value), dim, 0)
        for atom in here:
            if any((block != block[:1]).any() for block in slices(axis, along, atom)):
                yield atom


def _is_uniform(frame: Frame, atom: Any, dim: int) -> bool:
    """Whether the equations that make a constant give the same at all entries of a dimension, whatever its size."""
    eqn = None if isinstance(atom, Literal) else frame.makers.get(atom)
    if eqn is None:
        return False
    if eqn.primitive.name == "broadcast_in_dim":
        return dim not in eqn.params["broadcast_dimensions"] or _is_stretched(eqn, dim)
    if eqn.primitive.name == "iota":
        return eqn.params["dimension"] != dim
    if eqn.primitive.name in POINTWISE and len(eqn.outvars) == 1:
        rank = len(shape_of(eqn.outvars[0]))
        return all(
            len(shape_of(v)) < rank or shape_of(v)[dim] == 1 or _is_uniform(frame, v, dim) for v in eqn.invars
        )
    return False


def _is_stretched(eqn: JaxprEqn, dim: int) -> bool:
    (operand, *_) = eqn.invars
    return shape_of(operand)[eqn.params["broadcast_dimensions"].index(dim)] == 1
