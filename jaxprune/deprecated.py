"""Old spellings of public names: they work, and warn."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns that a name is deprecated; `stacklevel` is that of the line that used it."""
    warnings.warn(f"{old} is deprecated: it is {new} now.", DeprecationWarning, stacklevel=stacklevel)


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
