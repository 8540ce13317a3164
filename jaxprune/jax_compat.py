"""The differences between the supported versions of JAX, and every private name of JAX that is used.

Public names come first. A private name is used only if no public one exists, with the reason beside it. No other
module of the package imports from `jax._src` (a test has the list).

| what | JAX 0.10 | JAX 0.12 |
|---|---|---|
| a closed jaxpr | `ClosedJaxpr(jaxpr, consts)` | a `Jaxpr` whose leading inputs have values |
| a closed call | `closed_call` | `eval_jaxpr` |
| a scan's constants and carry | `num_consts`, `num_carry` | the lengths of the parts of `ft_in` |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from jax._src import source_info_util  # no public way to the frames of an equation's traceback
from jax._src.interpreters import partial_eval  # no public dead-code elimination
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.extend.source_info_util import current_name_stack, user_context

# Calls whose body is evaluated as it stands, by every name that a supported version gives them.
PLAIN_CALLS = ("jit", "pjit", "closed_call", "core_call", "eval_jaxpr")
REMATERIALIZED = ("remat2", "checkpoint")
# Calls with rules of their own for batching, partitioning or lowering, which none of the values depend on.
CUSTOM_CALLS = ("custom_vmap_call", "custom_partitioning", "composite")
CUSTOM_DERIVATIVES = ("custom_jvp_call", "custom_vjp_call")


def body_of(eqn: JaxprEqn) -> Any:
    """The jaxpr of a plain, rematerialized or custom call, closed or open."""
    return next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "call") if name in eqn.params)


def opened(jaxpr: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """A jaxpr and the values of its constants, from a closed or an open one."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, ClosedJaxpr) else (jaxpr, ())


def constants_as_inputs(closed: Any) -> Jaxpr:
    """The jaxpr whose first inputs are the constants of a closed one, without its dead equations."""
    jaxpr = partial_eval.convert_constvars_jaxpr(closed.jaxpr)
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return jaxpr


def without_dead_code(closed: Any) -> Any:
    """A closed jaxpr without its dead equations; all constants and inputs are kept, also unused ones."""
    jaxpr, consts = constants_as_inputs(closed), list(closed.consts)
    if hasattr(partial_eval, "convert_invars_to_constvars"):  # JAX 0.10 and 0.11
        jaxpr = partial_eval.convert_invars_to_constvars(jaxpr, len(consts))
    return ClosedJaxpr(jaxpr, consts)


def scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are its carry."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(consts), len(carry)


def user_frames(eqn: JaxprEqn) -> list[Any]:
    """The traceback frames of an equation outside of JAX, innermost first: `file_name`, `start_line`."""
    return list(source_info_util.user_frames(eqn.source_info.traceback))


@contextmanager
def context_of(eqn: JaxprEqn) -> Iterator[None]:
    """A context in which bound primitives get the source lines, name scope and settings of an equation."""
    scope = current_name_stack() + eqn.source_info.name_stack
    with ExitStack() as stack:
        stack.enter_context(user_context(eqn.source_info.traceback, name_stack=scope))
        stack.enter_context(eqn.ctx.manager)
        yield
