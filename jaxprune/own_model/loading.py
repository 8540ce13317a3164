"""The model that a function of a file or a module makes, and the checks of it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxprune.own_model._model import Model

_BUILD = "build"


def load_model(target: str) -> Model:
    """The model that `my_file.py:build` or `package.module:build` makes.

    The folder of the file (of a module: the current folder) is put first on the path of imports, as Python does when
    it runs a file.

    Args:
      target: a file or a module, a colon and the name of a function; without them the function is `build`.

    Raises:
      ValueError: if there is no such file, module or function, if one of them fails, or if it does not return a
        `Model`. The message is one line.
    """
    place, name = _split(target)
    module = _file_module(Path(place)) if _is_file(place) else _named_module(place)
    found = getattr(module, name, None)
    if found is None:
        functions = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        there = f" It has: {', '.join(functions[:8])}." if functions else ""
        raise ValueError(
            f"{place} has no function {name!r}.{there} It must have one that returns a jaxprune.Model."
        )
    if not callable(found):
        raise ValueError(
            f"{name!r} in {place} is no function but a {type(found).__name__}: write def {name}(): return "
            "jaxprune.Model(fn, params, inputs)."
        )
    model = running(f"{name}() of {place} failed", place, found)
    if not isinstance(model, Model):
        raise ValueError(
            f"{name}() of {place} must return a jaxprune.Model(fn, params, inputs, ...), got {_kind(model)}."
        )
    return model


def running(what: str, place: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a user's function; an error of any kind is a ValueError of one line that says where it arose.

    Args:
      what: what has failed if it fails.
      place: the user's file or module: its lines are told in preference to those of libraries.
      function, *arguments: what is called.
    """
    try:
        return function(*arguments)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # SystemExit too: a script that ends itself
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise ValueError(f"{what}: {_said(error)}{_where(error, place)}.") from error


def file_of(target: str) -> str:
    """The file or module that a target names."""
    return _split(target)[0]


def _split(target: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if not colon or not name.isidentifier():  # C:\model.py has a colon too
        place, name = target.removesuffix(":"), _BUILD
    if not place:
        raise ValueError(
            f"the model must be named as my_file.py:build or package.module:build, got {target!r}."
        )
    return place, name


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or Path(place).is_file()


def _file_module(path: Path) -> types.ModuleType:
    if not path.is_file():
        raise ValueError(f"there is no file {path}{' (it is a folder)' if path.is_dir() else ''}.")
    name = f"jaxprune_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} must be a Python file, its name ending in .py.")
    module = importlib.util.module_from_spec(spec)
    _put_first(str(path.resolve().parent))
    sys.modules[name] = module
    running(f"{path} can't be imported", str(path), spec.loader.exec_module, module)
    return module


def _named_module(name: str) -> types.ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"{name!r} is neither a file that ends in .py nor the name of a module.")
    _put_first(os.getcwd())
    return running(f"the module {name} can't be imported", name, importlib.import_module, name)


def _put_first(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _said(error: BaseException) -> str:
    """The class and the first lines of an error, without JAX's help pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:4])[:400].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _where(error: BaseException, place: str) -> str:
    """The last line of the user's file that led to an error; else that of the error itself, outside of jaxprune."""
    frames = traceback.extract_tb(error.__traceback__)
    own = os.path.realpath(getattr(sys.modules.get(place), "__file__", None) or place)
    frames = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<")]
    chosen = [f for f in frames if os.path.realpath(f.filename) == own] or frames
    return f" ({os.path.basename(chosen[-1].filename)}:{chosen[-1].lineno})" if chosen else ""


def _kind(value: Any) -> str:
    return "nothing (None)" if value is None else f"one of type {type(value).__name__}"
