"""Calls: the one table of primitives that hold jaxprs, and which of their operands each body takes.

What walks through a jaxpr asks here whether an equation is a call, of which kind, and what its bodies are. A
primitive that is missing here (`shard_map`, whose body sees shards, kernels, callbacks) is an operation like
any other: nothing looks inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from jax.extend.core import Jaxpr, JaxprEqn

from jaxprune import jax_compat

T = TypeVar("T")
Kind = Literal[
    "plain", "remat", "custom", "custom_jvp", "custom_vjp", "scan", "while", "cond", "linear_solve"
]

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        **dict.fromkeys(jax_compat.PLAIN_CALLS, "plain"),
        **dict.fromkeys(jax_compat.REMATERIALIZED, "remat"),
        **dict.fromkeys(jax_compat.CUSTOM_CALLS, "custom"),
        "custom_jvp_call": "custom_jvp",
        "custom_vjp_call": "custom_vjp",
        "scan": "scan",
        "while": "while",
        "cond": "cond",
        "custom_linear_solve": "linear_solve",
    }
)

# Calls with one body, whose results are the call's on the operands as they stand.
INLINE: frozenset[Kind] = frozenset(("plain", "remat", "custom", "custom_jvp", "custom_vjp"))


class Body(NamedTuple):
    """A jaxpr that an equation calls: its inputs are the operands at these places (of a scan's, slices)."""

    jaxpr: Jaxpr
    consts: Sequence[Any]
    operands: tuple[int, ...]

    def of(self, operands: Sequence[T]) -> list[T]:
        """What belongs to the inputs of the body, of what belongs to the operands of the call."""
        return [operands[place] for place in self.operands]


class Parts(NamedTuple):
    """The operands of a loop: those that each step sees, those that it changes, those it takes slices of."""

    consts: list[Any]
    carry: list[Any]
    xs: list[Any]


def kind_of(eqn: JaxprEqn) -> Kind | None:
    """What kind of call an equation is; None if it is none."""
    return KINDS.get(eqn.primitive.name)


def is_inline(eqn: JaxprEqn) -> bool:
    """Whether an equation is a call that could as well be replaced by its body."""
    return kind_of(eqn) in INLINE


def bodies_of(eqn: JaxprEqn) -> tuple[Body, ...]:
    """The bodies of a call: of a while its condition first, of a cond the branches in order, else one."""
    p, n = eqn.params, len(eqn.invars)
    match kind_of(eqn):
        case None:
            return ()
        case "scan":
            return (_body(p["jaxpr"], range(n)),)
        case "while":
            n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
            of_cond = (*range(n_cond), *range(n_cond + n_body, n))
            return _body(p["cond_jaxpr"], of_cond), _body(p["body_jaxpr"], range(n_cond, n))
        case "cond":
            return tuple(_body(branch, range(1, n)) for branch in p["branches"])
        case "linear_solve":
            bodies, first, right = [], 0, range(sum(p["const_lengths"]), n)
            for length, jaxpr in zip(p["const_lengths"], p["jaxprs"], strict=True):
                if jaxpr is not None:
                    bodies.append(_body(jaxpr, (*range(first, first + length), *right)))
                first += length
            return tuple(bodies)
    return (_body(jax_compat.body_of(eqn), range(n)),)


def scan_parts(eqn: JaxprEqn, operands: Sequence[Any]) -> Parts:
    """What belongs to the constants, the carry and the scanned operands of a scan."""
    n_consts, n_carry = jax_compat.scan_counts(eqn)
    stop = n_consts + n_carry
    return Parts(list(operands[:n_consts]), list(operands[n_consts:stop]), list(operands[stop:]))


def while_parts(eqn: JaxprEqn, operands: Sequence[Any]) -> tuple[list[Any], Parts]:
    """What belongs to the constants of a while loop's condition, and to its body."""
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    stop = n_cond + n_body
    return list(operands[:n_cond]), Parts(list(operands[n_cond:stop]), list(operands[stop:]), [])


def settled(step: Callable[[list[T]], Sequence[T]], carry: Sequence[T], join: Callable[[T, T], T]) -> list[T]:
    """The results of a loop's body, its carry first, as it is after any number of steps.

    Args:
      step: what is known of a body's results, of what is known of its carry.
      carry: what is known of the carry before the first step.
      join: what is known of a value that is one of two.
    """
    now = list(carry)
    while True:
        outs = list(step(now))
        after = [join(a, b) for a, b in zip(now, outs[: len(now)], strict=True)]
        if after == now:
            return [*after, *outs[len(now) :]]
        now = after


def _body(jaxpr: Any, operands: Sequence[int]) -> Body:
    return Body(*jax_compat.opened(jaxpr), tuple(operands))
