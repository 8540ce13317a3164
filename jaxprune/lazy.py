"""Packages that import their public names only when one of them is used.

The command line needs this: it answers `--help`, mistakes and Ctrl-C before JAX is imported, although importing one
of its modules first imports the packages around it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Sequence
from typing import Any


def attach(package: str, source: str, modules: Sequence[str] = ()) -> None:
    """Gives a package all public names of a module, which is imported when the first of them is used.

    Args:
      package: name of the package; call this in its `__init__.py`.
      source: the module, with `__all__`. None of its names may be that of a submodule of the package.
      modules: submodules that `dir()` names beside them; the others can be imported, but are not public.
    """

    class Package(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            # `from package import submodule` asks here first: that is no reason to import everything, nor are the
            # special names that Python and its tools look for.
            if importlib.util.find_spec(f"{package}.{name}"):
                return importlib.import_module(f"{package}.{name}")
            if not name.startswith("__") or name == "__all__":
                offered = importlib.import_module(source)
                self.__dict__.update({n: getattr(offered, n) for n in offered.__all__})
                self.__dict__["__all__"] = offered.__all__
                if name in self.__dict__:
                    return self.__dict__[name]
            raise AttributeError(f"module {package!r} has no attribute {name!r}")

        def __dir__(self) -> list[str]:
            return sorted({"__version__", *modules, *self.__getattr__("__all__")})

    sys.modules[package].__class__ = Package
