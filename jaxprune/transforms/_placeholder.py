"""`optax.tree.map_params` over the states of wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from jaxprune.params import PyTree


def mappable(
    init_fn: Callable[[PyTree], Any], state: type, inner: optax.GradientTransformation
) -> Callable[[PyTree], Any]:
    """An `init` that `optax.tree.map_params` can also call, to find the parts of a state that are like parameters.

    `map_params` calls `init` with a placeholder for the parameters. The `init` of the inner optimizer finds its
    own moments. Each other field, masks among them, counts as one leaf that is not like the parameters, because
    its shapes differ from theirs.

    Args:
      init_fn: the `init` of the wrapper for parameters.
      state: the NamedTuple of the wrapper, with a field `inner_state`.
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
