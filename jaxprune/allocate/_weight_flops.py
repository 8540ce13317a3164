"""FLOPs of the products that each weight takes part in, from the jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from jaxprune.jax_compat import CUSTOM_DERIVATIVES, PLAIN_CALLS, REMATERIALIZED, body_of, opened, scan_counts
from jaxprune.params import PyTree, flatten_with_paths
from jaxprune.tracing import contracted_dims, is_array_leaf, shape_of, trace


def weight_flops(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> PyTree:
    """Floating-point operations (two a multiply-add) of the contractions and convolutions by each parameter.

    A product counts for the parameter that its operand is made of (cast, transposed, reshaped, sliced ...); one
    made of several counts for each by its size. Products of two activations count for none. The body of a
    loop of known length counts that many times, of an unknown length once; a conditional as its dearest branch.
    What happens inside other calls (a Pallas kernel, `shard_map`) is not seen.

    Args:
      fn: `fn(params, *inputs)`.
      params: pytree of arrays (or `jax.ShapeDtypeStruct`s).
      *inputs: pytrees of arrays (or shapes); FLOPs are for these batch sizes.

    Returns:
      Tree like `params` of Python ints, 0 for what is in no product.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
      >>> jp.allocate.weight_flops(lambda p, x: x @ p["kernel"] + p["bias"], params, jnp.ones((1, 8)))
      {'bias': 0, 'kernel': 64}
    """
    traced = trace(fn, params, inputs)
    weights = [frozenset({i}) for i in range(len(traced.paths))]
    ins = [*[frozenset()] * len(traced.consts), *weights, *[None] * len(traced.input_paths)]
    flops, _ = _walk(traced.jaxpr, ins, [math.prod(aval.shape) for aval in traced.avals])
    found = iter(range(len(traced.paths)))
    _, leaves, treedef = flatten_with_paths(params)
    counts = [round(flops[next(found)]) if is_array_leaf(leaf) else 0 for leaf in leaves]
    return jax.tree.unflatten(treedef, counts)


# Where a value comes from: the numbers of the parameters it is made of, or None if an input has a part in it.
Origin = frozenset[int] | None
_CALLS = frozenset((*PLAIN_CALLS, *REMATERIALIZED, *CUSTOM_DERIVATIVES))
_PRODUCTS = ("dot_general", "ragged_dot_general", "conv_general_dilated")
_PICKS = ("gather", "dynamic_slice")  # a weight picked by the input, an expert's, is a weight


def _walk(jaxpr: Jaxpr, ins: Sequence[Origin], sizes: Sequence[int]) -> tuple[list[float], list[Origin]]:
    """FLOPs of each parameter in a jaxpr, and where its outputs come from."""
    origins: dict[Any, Origin] = dict.fromkeys(jaxpr.constvars, frozenset())
    origins.update(zip(jaxpr.invars, ins, strict=True))
    flops = [0.0] * len(sizes)

    def origin(atom: Any) -> Origin:
        return frozenset() if isinstance(atom, Literal) else origins[atom]

    for eqn in jaxpr.eqns:
        found, outs = _equation(eqn, [origin(atom) for atom in eqn.invars], sizes)
        flops = [a + b for a, b in zip(flops, found, strict=True)]
        origins.update(zip(eqn.outvars, outs, strict=True))
    return flops, [origin(atom) for atom in jaxpr.outvars]


def _equation(eqn: JaxprEqn, ins: list[Origin], sizes: Sequence[int]) -> tuple[list[float], list[Origin]]:
    name, p = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _walk(opened(body_of(eqn))[0], ins, sizes)
    if name == "cond":
        found = [_walk(opened(branch)[0], ins[1:], sizes) for branch in p["branches"]]
        outs = [_join([ins[0], *origins]) for origins in zip(*(outs for _, outs in found), strict=True)]
        return max((flops for flops, _ in found), key=sum), outs
    if name == "scan":
        start, carried = scan_counts(eqn)
        stop = start + carried
        flops, outs = _loop(opened(p["jaxpr"])[0], ins[:start], ins[start:stop], ins[stop:], sizes)
        return [p["length"] * f for f in flops], outs
    if name == "while":
        start, stop = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        return _loop(opened(p["body_jaxpr"])[0], ins[start:stop], ins[stop:], [], sizes)
    flops = [0.0] * len(sizes)
    made_of = [o for o in ins[:2] if o] if name in _PRODUCTS else []
    if len(made_of) == 1:
        whole = sum(sizes[i] for i in made_of[0])
        for i in made_of[0]:
            flops[i] = _product_flops(eqn) * sizes[i] / max(whole, 1)
    return flops, [ins[0] if name in _PICKS else _join(ins)] * len(eqn.outvars)


def _loop(
    body: Jaxpr, consts: list[Origin], carry: list[Origin], xs: list[Origin], sizes: Sequence[int]
) -> tuple[list[float], list[Origin]]:
    """One turn of a loop's body, with a carry that comes from all that went into it in any turn."""
    while True:
        flops, outs = _walk(body, [*consts, *carry, *xs], sizes)
        after = [_join(pair) for pair in zip(carry, outs[: len(carry)], strict=True)]
        if after == carry:
            return flops, [*after, *outs[len(carry) :]]
        carry = after


def _join(origins: Sequence[Origin]) -> Origin:
    known = [o for o in origins if o is not None]
    return None if len(known) < len(origins) else frozenset().union(*known)


def _product_flops(eqn: JaxprEqn) -> int:
    left, right = (shape_of(atom) for atom in eqn.invars[:2])
    shape = shape_of(eqn.outvars[0])
    if eqn.primitive.name != "conv_general_dilated":
        contract, of_groups = contracted_dims(eqn)
        return 2 * math.prod(shape[of_groups:]) * math.prod(left[dim] for dim in contract)
    out = math.prod(shape)
    features = eqn.params["dimension_numbers"].rhs_spec[0]
    return 2 * out * math.prod(n for dim, n in enumerate(right) if dim != features)
