"""Packages that import each of their public names when it is first used.

The command line needs this: it answers `--help`, mistakes and Ctrl-C before JAX is imported, although importing one
of its modules first imports the packages around it. And a program that wraps an optimizer does not wait for surgery.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any


def attach(package: str, source: str, modules: Sequence[str] = ()) -> None:
    """Gives a package all public names of a module; what a name stands for is imported when it is first used.

    Args:
      package: name of the package; call this in its `__init__.py`.
      source: a module that only imports names, `from ... import ...`, and has `__all__`. It is read, not run. None of
        its names may be that of a submodule of the package, unless it is that submodule.
      modules: submodules that `dir()` names beside them; the others can be imported, but are not public.
    """

    @functools.cache
    def offered() -> tuple[list[str], dict[str, tuple[str, str]]]:
        return _names(source)

    class Package(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            # `from package import submodule` asks here first: that is no reason to read anything, nor are the
            # special names that Python and its tools look for.
            if importlib.util.find_spec(f"{package}.{name}"):
                return importlib.import_module(f"{package}.{name}")
            if name == "__all__":
                return list(offered()[0])
            if not name.startswith("__") and name in offered()[1]:
                module, attribute = offered()[1][name]
                self.__dict__[name] = value = getattr(importlib.import_module(module), attribute)
                return value
            raise AttributeError(f"module {package!r} has no attribute {name!r}")

        def __dir__(self) -> list[str]:
            return sorted({"__version__", *modules, *self.__getattr__("__all__")})

    sys.modules[package].__class__ = Package


def _names(source: str) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """`__all__` of a module, and where each of its names is imported from: (module, name there)."""
    import ast

    loader: Any = getattr(importlib.util.find_spec(source), "loader", None)
    text = loader.get_source(source) if hasattr(loader, "get_source") else None
    if text is None:  # only its compiled form is there
        offered = list(importlib.import_module(source).__all__)
        return offered, {name: (source, name) for name in offered}
    offered, origins = [], {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            origins |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            offered = ast.literal_eval(node.value)
    return offered, {name: origins[name] for name in offered}
