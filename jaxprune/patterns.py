"""Patterns that select leaves of a pytree: regular expressions, predicates, NNX filters."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import EllipsisType
from typing import Any

from jaxprune.tree_nodes import Leaf, is_variable

Pattern = str | type | Callable[[str, Any], bool] | EllipsisType


def patterns_of(argument: str, given: Pattern | Iterable[Pattern]) -> Sequence[Any]:
    """One or several patterns, checked, as a sequence."""
    if isinstance(given, str) or callable(given) or given is ...:
        given = (given,)
    elif not isinstance(given, Iterable):
        raise TypeError(_not_a_pattern(argument, given))
    given = tuple(given)
    for pattern in given:
        if not (isinstance(pattern, str) or callable(pattern) or pattern is ...):
            raise TypeError(_not_a_pattern(argument, pattern))
    return given


def matches(argument: str, pattern: Any, leaves: list[Leaf]) -> list[int]:
    """Positions of the leaves that a pattern selects.

    Raises:
      ValueError: if it selects no leaf, or is not a regular expression.
      TypeError: if a predicate does not take a path and a leaf.
    """
    holds = _expression(argument, pattern) if isinstance(pattern, str) else _predicate(argument, pattern)
    found = [i for i, leaf in enumerate(leaves) if holds(leaf)]
    if not found:
        paths = [leaf.path for leaf in leaves]
        shown = ", ".join(map(repr, paths[:20])) + (", ..." if len(paths) > 20 else "")
        kind = "pattern" if isinstance(pattern, str) else "filter" if _is_filter(pattern) else "predicate"
        hint = {
            "pattern": "Patterns are regular expressions for whole paths.",
            "filter": "NNX filters apply to the variables of an NNX state or module.",
            "predicate": "A predicate gets such a path and the leaf.",
        }[kind]
        raise ValueError(
            f"`{argument}` {kind} {_shown(pattern)} matched no parameter. There are: {shown} "
            f"({len(paths)} in all). {hint}"
        )
    return found


def names_of(
    argument: str, patterns: Iterable[str], paths: Mapping[str, Iterable[str]], what: str
) -> list[str]:
    """The names that patterns select: names as they are, or patterns of the paths that belong to a name.

    Args:
      argument: name of the argument that the patterns were passed as, for error messages.
      patterns: names; or regular expressions, which must match a whole path, or a leading part of it that ends
        before a slash; or, where these match nothing, names and leading parts of paths as tables print them, with
        `*` for any text without a slash.
      paths: name -> its paths.
      what: that which has the names, for error messages.

    Raises:
      ValueError: if a pattern selects no name, or is not a regular expression.
    """
    names: list[str] = []
    for pattern in patterns:
        found = [name for name in paths if name == pattern]
        if not found:
            found = _matched(argument, pattern, paths)
        if not found:
            there = ", ".join(map(repr, list(paths)[:20]))
            raise ValueError(
                f"`{argument}` pattern {pattern!r} matched no {what}. There are: {there} ({len(paths)} in all)."
            )
        names += found
    return list(dict.fromkeys(names))


def _matched(argument: str, pattern: str, paths: Mapping[str, Iterable[str]]) -> list[str]:
    """The names of the paths that a regular expression matches, else those of a pattern as tables print it."""
    whole = starred_name(pattern)
    below = re.compile(rf"(?:{whole.pattern})(?:/.*)?", re.DOTALL)
    printed = [name for name in paths if whole.fullmatch(name)]
    printed = printed or [name for name in paths if any(map(below.fullmatch, paths[name]))]
    try:
        expression = _compiled(argument, pattern, "/")
    except ValueError:
        if printed:
            return printed
        raise
    return [name for name in paths if any(map(expression.fullmatch, paths[name]))] or printed


def starred_name(pattern: str) -> re.Pattern[str]:
    """The expression for names in which each `*` of a pattern is some text without a slash.

    >>> bool(starred_name("layers/*/up[1]").fullmatch("layers/12/up[1]"))
    True
    """
    return re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))


def _expression(argument: str, pattern: str) -> Callable[[Leaf], bool]:
    expression = _compiled(argument, pattern, "/.")
    return lambda leaf: expression.fullmatch(leaf.path) is not None


def _compiled(argument: str, pattern: str, ends: str) -> re.Pattern[str]:
    """The expression for a whole path, or a leading part of it that ends before one of these characters."""
    try:
        return re.compile(rf"(?:{pattern})(?:[{ends}].*)?")
    except re.error as error:
        raise ValueError(
            f"`{argument}` pattern {pattern!r} is not a regular expression ({error}). "
            "Write '.*' for any text, as in 'encoder/.*/kernel'."
        ) from None


def _predicate(argument: str, pattern: Any) -> Callable[[Leaf], bool]:
    if isinstance(pattern, type):
        nnx = sys.modules.get("flax.nnx")
        if nnx is None or not issubclass(pattern, nnx.Variable):
            raise TypeError(
                f"`{argument}` takes only types of NNX variables, such as nnx.Param, got {pattern!r}."
            )
        return lambda leaf: isinstance(leaf.holder, pattern)
    if _is_filter(pattern):
        return lambda leaf: bool(pattern(leaf.keys, leaf.holder if is_variable(leaf.holder) else leaf.value))
    try:
        inspect.signature(pattern).bind("path", None)
    except TypeError:
        raise TypeError(
            f"`{argument}` predicate {_shown(pattern)} must take (path, leaf), as in "
            "lambda path, leaf: path.endswith('kernel')."
        ) from None
    except ValueError:
        pass  # some builtins have no signature
    return lambda leaf: bool(pattern(leaf.path, leaf.value))


def _is_filter(pattern: Any) -> bool:
    return isinstance(pattern, type) or type(pattern).__module__ == "flax.nnx.filterlib"


def _shown(pattern: Any) -> str:
    return repr(pattern) if isinstance(pattern, str) else getattr(pattern, "__name__", None) or repr(pattern)


def _not_a_pattern(argument: str, pattern: Any) -> str:
    return (
        f"`{argument}` must hold path patterns (str), predicates (path, leaf) -> bool, NNX filters, or `...`, "
        f"got {pattern!r}."
    )
