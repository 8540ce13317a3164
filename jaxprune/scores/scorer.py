"""How loops call a score."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax

from jaxprune.params import PyTree


def call_score(score: Callable[..., PyTree], params: PyTree, key: jax.Array | None) -> PyTree:
    """`score(params)`, or `score(params, key=key)` for a score with a parameter named `key`."""
    try:
        takes_key = "key" in inspect.signature(score).parameters
    except (TypeError, ValueError):  # some builtins and compiled callables tell nothing of themselves
        takes_key = False
    if not takes_key:
        return score(params)
    if key is None:
        raise ValueError("`score` takes a `key`, but none was given: pass `key=jax.random.key(...)`.")
    return score(params, key=key)
