"""`optax.tree.map_params` over the states of wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from jaxprune.params import PyTree


def mappable(
    init_fn: Callable[[PyTree], Any], state: type, inner: optax.GradientTransformation
) -> Callable[[PyTree], Any]:
    """An `init` that `optax.tree.map_params` can call too, to learn which parts of a state are parameters.

    It calls `init` with a placeholder of the parameters. The inner optimizer's moments are found by its own
    `init`; the other fields, masks among them, are no parameters, each as a whole: their shapes are not
    those of the parameters.

    Args:
      init_fn: the wrapper's `init` for parameters.
      state: its NamedTuple, with a field `inner_state`.
      inner: the wrapped optimizer.
    """

    def init(params: PyTree) -> Any:
        if not isinstance(params, _PLACEHOLDER):
            return init_fn(params)
        fields: dict[str, Any] = dict.fromkeys(state._fields, 0)  # pyright: ignore[reportAttributeAccessIssue]
        return state(**fields | {"inner_state": inner.init(params)})

    return init


def _placeholder() -> type:
    """The type of optax's placeholder, which has no public name."""
    seen: list[type] = []
    optax.tree.map_params(lambda params: seen.append(type(params)) or (), lambda leaf: leaf, ())
    return seen[0]


_PLACEHOLDER = _placeholder()
