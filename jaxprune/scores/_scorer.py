"""How training loops call a score function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxprune.params import PyTree

_KEY_NAMES = ("key", "rng")


def call_score(score: Callable[..., PyTree], params: PyTree, key: jax.Array | None) -> PyTree:
    """The scores that a function of the parameters, or of the parameters and a key, returns.

    A function with a parameter `key` or `rng` gets the key by keyword. One that needs two arguments gets the
    key as the second. Every other function gets the parameters alone. If there is no key, a function with a
    default for it is called without.

    Raises:
      ValueError: if the function needs a key and there is none.
      TypeError: if it needs more than parameters and a key, or is not a function.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxprune.scores._scorer import call_score
      >>> call_score(lambda params, rng: jax.random.uniform(rng, params.shape), jnp.ones(2), jax.random.key(0)).shape
      (2,)
    """
    if not callable(score):
        raise TypeError(f"`score` must be a function params -> scores, got {score!r}.")
    try:
        signature = inspect.signature(score)
    except (TypeError, ValueError):  # some builtins and compiled callables tell nothing of themselves
        return score(params)
    named = [name for name in _KEY_NAMES if name in signature.parameters]
    by_keyword = [
        n
        for n in named
        if signature.parameters[n].kind is not inspect.Parameter.POSITIONAL_ONLY
        and (key is not None or signature.parameters[n].default is inspect.Parameter.empty)
    ]
    if by_keyword and _takes(signature, params, **{by_keyword[0]: key}):
        return score(params, **{by_keyword[0]: _given(key)})
    if _takes(signature, params):
        return score(params)
    if _takes(signature, params, key) and list(signature.parameters)[1] != "stats":  # wanda's are no key
        return score(params, _given(key))
    raise TypeError(
        f"`score` must take (params) or (params, key), got a function that takes {signature}. Bind its other "
        "arguments, as in lambda params: score(loss_fn, params, batch)."
    )


def parameters_of(score: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments of a score, by their names; none if it tells nothing of itself."""
    try:
        return inspect.signature(score).parameters
    except (TypeError, ValueError):  # some builtins and compiled callables
        return {}


def first_of(score: Callable[..., Any]) -> str:
    """The name of the first argument of a score."""
    return next(iter(parameters_of(score)), "")


def name_of(score: Callable[..., Any]) -> str:
    """The name of a score, the same in each process: with the arguments that are bound to it, if these are short.

    Example:
      >>> import functools
      >>> import jaxprune as jp
      >>> from jaxprune.scores._scorer import name_of
      >>> name_of(functools.partial(jp.surgery.activation_scores, statistic="rms"))
      "activation_scores(statistic='rms')"
    """
    if isinstance(score, functools.partial):
        bound = [_text(value) for value in score.args]
        bound += [f"{name}={_text(value)}" for name, value in score.keywords.items()]
        return f"{name_of(score.func)}({', '.join(bound)})"
    name = getattr(score, "__name__", None) or repr(score)
    return type(score).__name__ if " at 0x" in name else name


def _text(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else "..."


def _takes(signature: inspect.Signature, *args: object, **kwargs: object) -> bool:
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _given(key: jax.Array | None) -> jax.Array:
    if key is None:
        raise ValueError("`score` takes a `key`, but none was given: pass `key=jax.random.key(...)`.")
    return key
