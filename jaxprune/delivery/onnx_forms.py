"""A traced function in the forms of its operations that ONNX has.

The converter never sees the function itself, only plain equations: it replaces functions of JAX while it traces, and
what is compiled by an inner `jax.jit` in that time would stay replaced.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn, Literal

from jaxprune.delivery.activations import Activation, find_activations
from jaxprune.jax_compat import without_dead_code
from jaxprune.jaxprs import bind
from jaxprune.jaxprs.calls import bodies_of, is_inline
from jaxprune.jaxprs.equations import walk

Values = list[Any]
SMALL = 1024  # entries of a constant that is computed before the conversion


def in_onnx_forms(fn: Callable[..., Any], specs: Sequence[jax.ShapeDtypeStruct]) -> Callable[..., Values]:
    """A function of plain equations that computes what `fn` computes.

    Calls are replaced by their bodies, equations whose results nothing uses are left out, and operations that ONNX has
    in one form only are brought to that form. Activations of `jax.nn` that ONNX has as one operator remain calls of
    `jax.nn`, which the converter knows.

    Args:
      fn: function of arrays.
      specs: its inputs, which may have symbolic sizes.
    """
    plain = _plain(fn, *specs)
    # Found now: while the converter traces, the functions of `jax.nn` are others.
    activations = find_activations(plain.jaxpr, lambda call, spec: _plain(call, spec).jaxpr)
    needed = _needed(plain.jaxpr, activations)

    def convert(*args: Any) -> Values:
        known: dict[Any, Any] = dict(zip(plain.jaxpr.constvars, plain.consts, strict=True))
        known.update(zip(plain.jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            return _typed(atom) if isinstance(atom, Literal) else known[atom]

        for eqn in (eqn for eqn in plain.jaxpr.eqns if id(eqn) in needed):
            activation = activations.get(eqn.outvars[0])
            outs = (
                bind(eqn, list(map(read, eqn.invars)))
                if activation is None
                else [activation.call(known[activation.operand])]
            )
            known.update(zip(eqn.outvars, outs, strict=True))
        return list(map(read, plain.jaxpr.outvars))

    return convert


def _plain(fn: Callable[..., Any], *specs: jax.ShapeDtypeStruct) -> Any:
    """The jaxpr of a function without calls and dead code, in the forms that ONNX has."""
    traced = without_dead_code(jax.make_jaxpr(fn)(*specs))
    formed = jax.make_jaxpr(lambda *args: _walk(traced.jaxpr, traced.consts, args))(*specs)
    return without_dead_code(formed)


def _needed(jaxpr: Any, activations: dict[Any, Activation]) -> set[int]:
    """The equations (by id) whose results are used, an activation being computed from its operand."""
    used = {var for var in jaxpr.outvars if not isinstance(var, Literal)}
    needed = set()
    for eqn in reversed(jaxpr.eqns):
        if used.intersection(eqn.outvars) or eqn.effects:
            needed.add(id(eqn))
            activation = activations.get(eqn.outvars[0]) if eqn.outvars else None
            operands = eqn.invars if activation is None else [activation.operand]
            used.update(atom for atom in operands if not isinstance(atom, Literal))
    return needed


def _walk(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> Values:
    def equation(index: int, eqn: JaxprEqn, operands: Values) -> Sequence[Any]:
        del index
        if is_inline(eqn):
            (body,) = bodies_of(eqn)
            return _walk(body.jaxpr, body.consts, body.of(operands))
        if _is_small_constant(eqn, operands):
            with jax.ensure_compile_time_eval():
                return [np.asarray(out) for out in bind(eqn, operands)]
        form = FORMS.get(eqn.primitive.name)
        return bind(eqn, operands) if form is None else [form(eqn, *operands)]

    return walk(jaxpr, consts, args, _typed, equation)


def _is_small_constant(eqn: JaxprEqn, operands: Values) -> bool:
    """Whether an equation gives a few numbers that depend on no input: the converter mistakes some of their sizes."""
    if not operands or eqn.effects or any(isinstance(x, jax.core.Tracer) for x in operands):
        return False
    avals = [var.aval for var in eqn.outvars]
    are_arrays = all(hasattr(aval, "dtype") and not _is_key(aval) for aval in avals)
    return are_arrays and all(_is_small(aval.shape) for aval in avals)


def _is_small(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape) and math.prod(shape) <= SMALL


def _is_key(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jax.dtypes.extended)


def _typed(atom: Literal) -> Any:
    """A literal's value with its dtype, which a plain number would lose."""
    return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom.aval, "dtype") else atom.val


def _dot_general(eqn: JaxprEqn, left: Any, right: Any) -> Any:
    """A product as (batch, rows, inner) times (batch, inner, columns), of one dtype, with few transpositions."""
    (contract, batch), out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    wide = jnp.promote_types(jnp.promote_types(left.dtype, right.dtype), out.dtype)
    left, right = (x if x.dtype == wide else lax.convert_element_type(x, wide) for x in (left, right))
    free = [
        [dim for dim in range(x.ndim) if dim not in (*contract[i], *batch[i])]
        for i, x in enumerate((left, right))
    ]
    orders = [
        (((*batch[0], *free[0], *contract[0]), left), ((*batch[1], *contract[1], *free[1]), right)),
        (((*batch[1], *free[1], *contract[1]), right), ((*batch[0], *contract[0], *free[0]), left)),
    ]
    cost = [sum(_moved(x.shape, order) for order, x in sides) for sides in orders]
    n, rows, columns = len(batch[0]), len(free[0]), len(free[1])
    back = (*range(n), *range(n + columns, n + columns + rows), *range(n, n + columns))
    swapped = cost[1] + _moved(out.shape, back) < cost[0]
    (order_a, a), (order_b, b) = orders[swapped]
    inner, outer = len(contract[0]), (columns, rows) if swapped else (rows, columns)
    a, b = _in_order(a, order_a), _in_order(b, order_b)
    shape = (*a.shape[: n + outer[0]], *b.shape[n + inner :])
    a = _reshaped(a, (*a.shape[:n], *_products(a.shape[n:], outer[0])))
    b = _reshaped(b, (*b.shape[:n], *_products(b.shape[n:], inner)))
    numbers = (((n + 1,), (n,)), (tuple(range(n)),) * 2)
    found = lax.dot_general(a, b, dimension_numbers=numbers, precision=eqn.params["precision"])
    found = _reshaped(found, shape)
    found = _in_order(found, back) if swapped else found
    return found if found.dtype == out.dtype else lax.convert_element_type(found, out.dtype)


def _products(sizes: Sequence[Any], first: int) -> tuple[Any, Any]:
    return _product(sizes[:first]), _product(sizes[first:])


def _moved(shape: Sequence[Any], order: Sequence[int]) -> int:
    """Entries that a transposition moves, a symbolic size counting as 1; 0 if the order is as it was."""
    is_same = list(order) == sorted(order)
    return 0 if is_same else _product(size for size in shape if isinstance(size, int))


def _in_order(x: Any, order: Sequence[int]) -> Any:
    return x if list(order) == sorted(order) else lax.transpose(x, tuple(order))


def _reshaped(x: Any, shape: Sequence[Any]) -> Any:
    return x if x.shape == tuple(shape) else lax.reshape(x, tuple(shape))


def _select_n(eqn: JaxprEqn, which: Any, *cases: Any) -> Any:
    """A choice between bools by logic: ONNX Runtime has no `Where` of bools."""
    if len(cases) != 2 or cases[0].dtype != bool or which.dtype != bool:
        return bind(eqn, [which, *cases])[0]
    if which.ndim == 0 and cases[0].ndim:
        which = lax.broadcast(which, cases[0].shape)
    return (which & cases[1]) | (~which & cases[0])


def _window(eqn: JaxprEqn, operand: Any) -> Any:
    """A pooling over the last axes alone: ONNX has three window axes at most."""
    params = {name: eqn.params[name] for name in ("window_dimensions", "window_strides", "padding")}
    dilations = [eqn.params[name] for name in ("base_dilation", "window_dilation")]
    plain = {"window_dimensions": 1, "window_strides": 1, "padding": (0, 0)}
    outer = [
        dim
        for dim in range(operand.ndim)
        if all(tuple(np.ravel(value[dim])) == tuple(np.ravel(plain[name])) for name, value in params.items())
        and all(tuple(np.ravel(dilation[dim])) == (1,) for dilation in dilations)
    ]
    inner = [dim for dim in range(operand.ndim) if dim not in outer]
    if not outer or not inner:
        return bind(eqn, [operand])[0]
    moved = lax.transpose(operand, (*outer, *inner))
    shape = (_product(moved.shape[: len(outer)]), *moved.shape[len(outer) :])
    changed = {name: (plain[name], *(value[dim] for dim in inner)) for name, value in params.items()}
    changed["base_dilation"], changed["window_dilation"] = ((1, *(d[i] for i in inner)) for d in dilations)
    (pooled,) = bind(eqn, [lax.reshape(moved, shape)], **changed)
    whole = lax.reshape(pooled, (*moved.shape[: len(outer)], *pooled.shape[1:]))
    back = [0] * operand.ndim
    for place, dim in enumerate((*outer, *inner)):
        back[dim] = place
    return lax.transpose(whole, back)


def _smallest(eqn: JaxprEqn, operand: Any) -> Any:
    """The minimum over windows as a maximum: ONNX has no pooling by minima."""
    params = {key: value for key, value in eqn.params.items() if key != "out_sharding"}
    if not jnp.issubdtype(operand.dtype, jnp.floating):
        return bind(eqn, [operand])[0]
    pooled = jax.make_jaxpr(lambda x: lax.reduce_window_max_p.bind(x, **params))(lax.neg(operand))
    return lax.neg(_window(pooled.jaxpr.eqns[0], lax.neg(operand)))


def _product(sizes: Any) -> Any:
    """The product of sizes, which may be symbolic."""
    return math.prod(sizes)


def _pad(eqn: JaxprEqn, operand: Any, fill: Any) -> Any:
    """A padding of symbolic sizes, with neither gaps nor cuts, as a concatenation: the converter's own knows none."""
    config = eqn.params["padding_config"]
    is_known = all(isinstance(size, int) for size in operand.shape)
    if is_known or any(low < 0 or high < 0 or inner for low, high, inner in config):
        return bind(eqn, [operand, fill])[0]
    for axis, (low, high, _) in enumerate(config):
        sides = [
            lax.broadcast(fill, (*operand.shape[:axis], width, *operand.shape[axis + 1 :]))
            for width in (low, high)
        ]
        parts = [part for part in (sides[0], operand, sides[1]) if part.shape[axis] != 0]
        operand = lax.concatenate(parts, axis) if len(parts) > 1 else operand
    return operand


def _gather(eqn: JaxprEqn, operand: Any, places: Any) -> Any:
    """Slices without the positions on axes that they take whole, which are 0: the converter takes them for others."""
    numbers, sizes, mode = (eqn.params[name] for name in ("dimension_numbers", "slice_sizes", "mode"))
    axes = numbers.start_index_map
    kept = [i for i, axis in enumerate(axes) if sizes[axis] != operand.shape[axis]]
    if mode == lax.GatherScatterMode.FILL_OR_DROP or not kept or len(kept) == len(axes):
        return bind(eqn, [operand, places])[0]
    columns = [lax.slice_in_dim(places, i, i + 1, axis=places.ndim - 1) for i in kept]
    places = lax.concatenate(columns, places.ndim - 1) if len(columns) > 1 else columns[0]
    numbers = numbers._replace(start_index_map=tuple(axes[i] for i in kept))
    return bind(eqn, [operand, places], dimension_numbers=numbers)[0]


FORMS: dict[str, Callable] = {
    "gather": _gather,
    "pad": _pad,
    "dot_general": _dot_general,
    "select_n": _select_n,
    "reduce_window_max": _window,
    "reduce_window_min": _smallest,
    "reduce_window_sum": _window,
}
