"""Programs: a traced function as one flat list of steps, and the products by parameters among them.

Calls that a parameter enters are flattened, and so are scans that a weight enters, iteration by iteration. Every
other equation is one step. Equal steps on equal operands are one step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxprune.jaxprs.calls import bodies_of, is_inline, kind_of, scan_parts
from jaxprune.jaxprs.equations import bind, shape_of, walk
from jaxprune.jaxprs.ragged import ROWS, ragged_product, routed
from jaxprune.jaxprs.rows import ConvRows, Rows, weight_product
from jaxprune.jaxprs.signatures import signature
from jaxprune.jaxprs.tracing import Traced
from jaxprune.jaxprs.views import Matrix, View, follow, index, whole

INDEX = "index"  # first item of the key of a step that takes one slice of a scanned operand


class Step(NamedTuple):
    """A computation from values to values; steps of equal `key` compute the same."""

    run: Callable[..., Sequence[Any]]
    key: Hashable
    ins: tuple[int, ...]
    outs: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of its primitive, or what else it does; empty for an equation with effects."""
        return self.key[0] if isinstance(self.key, tuple) else ""


class Use(NamedTuple):
    """One product of activations by a parameter: `rows(value x) @ matrix(parameter leaf)`.

    `out` is the value of the product if it is ordered as the rows are, (rows, outputs), else None.
    """

    leaf: int
    matrix: Matrix
    rows: Rows
    x: int
    out: int | None

    @property
    def innermost(self) -> int:
        """Length of the innermost axis of the inputs; for a convolution the number of channels of one group."""
        if isinstance(self.rows, ConvRows):
            return self.matrix.shape[1] // math.prod(self.rows.window)
        return self.matrix.inputs[-1][0] if self.matrix.inputs else 1


class Program(NamedTuple):
    """Steps in order of the source; values are numbered."""

    steps: list[Step]
    uses: list[Use]
    params: list[int]  # values of the parameters
    inputs: list[int]
    constants: dict[int, Any]
    batched: set[int]  # values that depend on the inputs
    outs: list[int]


def flatten(traced: Traced, tracked: set[int]) -> Program:
    """Flattens a traced function and finds the products by tracked parameters."""
    flat = _Flat()
    jaxpr, n_params = traced.jaxpr, len(traced.avals)
    n_consts = len(traced.consts)
    ids = [flat.constant(const) for const in traced.consts]
    ids += [flat.new() for _ in jaxpr.invars[n_consts:]]
    params, inputs = ids[n_consts : n_consts + n_params], ids[n_consts + n_params :]
    flat.batched.update(inputs)
    flat.parametric.update(params)
    for leaf in tracked:
        flat.views[params[leaf]] = whole(leaf, traced.avals[leaf].shape)
    outs = flat.inline(jaxpr, (), ids)
    return Program(flat.steps, flat.uses, params, inputs, flat.constants, flat.batched, outs)


class _Flat:
    """The program so far, and facts about its values."""

    def __init__(self):
        self.steps: list[Step] = []
        self.uses: list[Use] = []
        self.constants: dict[int, Any] = {}
        self.known: dict[int, Any] = {}  # small integers: loop counters and values computed from them
        self.views: dict[int, View] = {}
        self.batched: set[int] = set()
        self.parametric: set[int] = set()  # values that depend on parameters, but not on the inputs
        self._count = 0
        self._seen: dict[Hashable, tuple[int, ...]] = {}
        self._numbers: dict[Hashable, int] = {}

    def new(self) -> int:
        self._count += 1
        return self._count - 1

    def constant(self, value: Any) -> int:
        number = self.new()
        self.constants[number] = value
        return number

    def integer(self, value: Any) -> int:
        """The number of the constant with this small integer."""
        value = np.asarray(value)
        key = (str(value.dtype), value.tobytes())
        if key not in self._numbers:
            self._numbers[key] = number = self.constant(value)
            self.known[number] = value
        return self._numbers[key]

    def add(self, run: Callable, key: Hashable, ins: tuple[int, ...], n_outs: int) -> tuple[int, ...]:
        """Adds a step, unless the same step exists already."""
        if (key, ins) in self._seen:
            return self._seen[key, ins]
        outs = tuple(self.new() for _ in range(n_outs))
        self.steps.append(Step(run, key, ins, outs))
        if any(i in self.batched for i in ins):
            self.batched.update(outs)
        elif any(i in self.parametric for i in ins):
            self.parametric.update(outs)
        self._seen[key, ins] = outs
        return outs

    def inline(self, jaxpr: Jaxpr, consts: Sequence[Any], ins: Sequence[int]) -> list[int]:
        """Adds the steps of a jaxpr on these values; returns the numbers of its results."""
        numbers = [self.constant(c) for c in consts]
        outs = walk(jaxpr, numbers, ins, lambda literal: literal, self._equation)
        return [self._number(v) for v in outs]

    def _equation(self, place: int, eqn: JaxprEqn, atoms: list[Any]) -> Sequence[int]:
        del place
        ins = tuple(a for a in atoms if not isinstance(a, Literal))
        views = [None if isinstance(a, Literal) else self.views.get(a) for a in atoms]
        is_weight = any(view is not None for view in views)
        if is_inline(eqn) and (is_weight or any(i in self.parametric for i in ins)):
            (body,) = bodies_of(eqn)
            return self.inline(body.jaxpr, body.consts, [self._number(a) for a in atoms])
        if is_weight and kind_of(eqn) == "scan":
            return self._scan(eqn, [self._number(a) for a in atoms])
        values = [a.val if isinstance(a, Literal) else self.known.get(a) for a in atoms]
        if _is_small(eqn) and all(value is not None for value in values):
            with jax.ensure_compile_time_eval():
                return [self.integer(value) for value in bind(eqn, values)]
        key = eqn if eqn.effects else signature(eqn)  # an equation with effects equals no other
        outs = self.add(_runner(eqn), key, ins, len(eqn.outvars))
        if views and views[0] is not None:
            found = follow(eqn, views[0], values[1:])
            if found is not None:
                self.views.update(zip(outs, found if isinstance(found, list) else [found], strict=True))
        product = weight_product(eqn, views) if len(views) == 2 else None
        if product is not None:
            operand, rows, matrix = product
            view: Any = views[1 - operand]
            if not isinstance(atoms[operand], Literal):
                use = Use(view.leaf, matrix, rows, atoms[operand], outs[0] if operand == 0 else None)
                if use not in self.uses:
                    self.uses.append(use)
        ragged = ragged_product(eqn, views) if len(views) == 3 else None
        if ragged is not None:
            self._ragged(eqn, atoms, views[1], ragged)
        return outs

    def _ragged(self, eqn: JaxprEqn, atoms: list[Any], view: Any, weight: Matrix) -> None:
        """A product whose rows are assigned to groups by the sizes of the groups."""
        (inputs_axis,) = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0][0]
        x, sizes = self._number(atoms[0]), self._number(atoms[2])
        key = ("routed", inputs_axis, str(eqn.invars[0].aval), str(eqn.invars[2].aval))
        (rows,) = self.add(functools.partial(routed, inputs_axis), key, (x, sizes), 1)
        use = Use(view.leaf, weight, ROWS, rows, None)
        if use not in self.uses:
            self.uses.append(use)

    def _number(self, atom: Any) -> int:
        """The number of a value or literal."""
        if not isinstance(atom, Literal):
            return atom
        value = np.asarray(atom.val, getattr(atom.aval, "dtype", None))
        return (
            self.integer(value) if value.shape == () and value.dtype.kind in "iu" else self.constant(atom.val)
        )

    def _scan(self, eqn: JaxprEqn, ins: list[int]) -> list[int]:
        p = eqn.params
        (consts, carry, xs), length, (body,) = scan_parts(eqn, ins), p["length"], bodies_of(eqn)
        n_carry, scanned = len(carry), scan_parts(eqn, eqn.invars).xs
        ys: list[list[int]] = []
        order = range(length - 1, -1, -1) if p["reverse"] else range(length)
        for i in order:
            slices = [self._at(x, i, v.aval) for x, v in zip(xs, scanned, strict=True)]
            outs = self.inline(body.jaxpr, body.consts, [*consts, *carry, *slices])
            carry = outs[:n_carry]
            ys.append(outs[n_carry:])
        ys = ys[::-1] if p["reverse"] else ys
        stacked = [
            self.add(_stack, ("stack", length, str(v.aval)), tuple(y[j] for y in ys), 1)[0]
            for j, v in enumerate(eqn.outvars[n_carry:])
        ]
        return [*carry, *stacked]

    def _at(self, x: int, i: int, aval: Any) -> int:
        (out,) = self.add(_index, (INDEX, str(aval)), (x, self.integer(np.int32(i))), 1)
        if x in self.views:
            self.views[out] = index(self.views[x], i)
        return out


def _runner(eqn: JaxprEqn) -> Callable[..., list[Any]]:
    """The equation as a function of its operands that are not literals."""

    def run(*args: Any) -> list[Any]:
        given = iter(args)
        return bind(eqn, [v.val if isinstance(v, Literal) else next(given) for v in eqn.invars])

    return run


def _index(x: Any, i: Any) -> list[Any]:
    return [lax.dynamic_index_in_dim(x, i, keepdims=False)]


def _stack(*parts: Any) -> list[Any]:
    return [jnp.stack(parts)]


def _is_small(eqn: JaxprEqn) -> bool:
    """Whether all results of an equation are single integers or bools."""
    return all(
        shape_of(v) == () and getattr(getattr(v.aval, "dtype", None), "kind", "") in tuple("biu")
        for v in eqn.outvars
    )
