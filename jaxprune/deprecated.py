"""Old spellings of public names: they work, and warn."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns that a name is deprecated; `stacklevel` is that of the line that used it."""
    warnings.warn(f"{old} is deprecated: it is {new} now.", DeprecationWarning, stacklevel=stacklevel)


def key_was_first(fn: Callable[P, R]) -> Callable[P, R]:
    """Lets a function that takes its `key` by keyword be called with it as the first argument, as it once was."""

    @functools.wraps(fn)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        # A tree of parameters is no such array; JAX is not imported here, for the command line's sake.
        if "key" not in kwargs and args and str(getattr(args[0], "dtype", "")).startswith(("key<", "uint32")):
            warn_renamed(f"`{fn.__name__}(key, ...)`", f"`{fn.__name__}(..., key=key)`")
            return fn(*args[1:], key=args[0], **kwargs)  # type: ignore[arg-type]
        return fn(*args, **kwargs)

    return called


def renamed_names(module: str, names: Mapping[str, tuple[str, Any]]) -> Callable[[str], Any]:
    """A module's `__getattr__` for names that it no longer has.

    Args:
      module: the module's name.
      names: old name -> the new name and what it stands for.
    """

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new, value = names[name]
        warn_renamed(f"`{module}.{name}`", f"`{module}.{new}`")
        return value

    return find
