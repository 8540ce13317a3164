"""Calls: the one table of primitives that contain jaxprs, and which of their operands each body takes.

Code that walks through a jaxpr uses this table to find out whether an equation is a call, of which kind, and what
its bodies are. A primitive that is missing here (`shard_map`, whose body sees shards, kernels, callbacks) is an
operation like any other: its body is not analysed.
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

# Calls with one body, which returns the results of the call on its unchanged operands.
INLINE: frozenset[Kind] = frozenset(("plain", "remat", "custom", "custom_jvp", "custom_vjp"))


class Body(NamedTuple):
    """A jaxpr that an equation calls; its inputs are the operands at these places (in a scan, slices of some)."""

    jaxpr: Jaxpr
    consts: Sequence[Any]
    operands: tuple[int, ...]

    def of(self, operands: Sequence[T]) -> list[T]:
        """Selects the items for the inputs of the body from items for the operands of the call."""
        return [operands[place] for place in self.operands]


class Parts(NamedTuple):
    """The operands of a loop: constants of all steps, the carry, and the operands that each step takes a slice of."""

    consts: list[Any]
    carry: list[Any]
    xs: list[Any]


def kind_of(eqn: JaxprEqn) -> Kind | None:
    """The kind of call of an equation; None if the equation is not a call."""
    return KINDS.get(eqn.primitive.name)


def is_inline(eqn: JaxprEqn) -> bool:
    """Whether an equation is a call that could be replaced by its body."""
    return kind_of(eqn) in INLINE


def bodies_of(eqn: JaxprEqn) -> tuple[Body, ...]:
    """The bodies of a call: the condition and the body of a while, the branches of a cond in order, else one body."""
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
    """Splits items for the operands of a scan into those for its constants, its carry and its scanned operands."""
    n_consts, n_carry = jax_compat.scan_counts(eqn)
    stop = n_consts + n_carry
    return Parts(list(operands[:n_consts]), list(operands[n_consts:stop]), list(operands[stop:]))


def while_parts(eqn: JaxprEqn, operands: Sequence[Any]) -> tuple[list[Any], Parts]:
    """Splits items for the operands of a while loop into those for its condition's constants and for its body."""
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    stop = n_cond + n_body
    return list(operands[:n_cond]), Parts(list(operands[n_cond:stop]), list(operands[stop:]), [])


def settled(step: Callable[[list[T]], Sequence[T]], carry: Sequence[T], join: Callable[[T, T], T]) -> list[T]:
    """Facts about the results of a loop's body, the carry first, that hold after any number of steps.

    Args:
      step: function from facts about the carry to facts about the results of the body.
      carry: facts about the carry before the first step.
      join: function of two facts that returns a fact which holds for a value that satisfies either of them.
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
