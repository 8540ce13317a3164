"""What a run computes, as texts that are the same in another process if it computes the same."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib
import numpy as np

from jaxprune.calibration.engine.model import CalibrationModel
from jaxprune.jaxprs.signatures import Identity

_ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
_PACKAGE = __name__.partition(".")[0]
_LONGEST = 120  # characters of a text that is shown as it is


def fingerprint(model: CalibrationModel, settings: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of all that decides the result: the function, the arrays, the settings and the versions."""
    program = model.program
    function = [(step.key, step.ins, step.outs) for step in program.steps]
    backend = jax.devices()[0]
    found = {
        "fn": (function, program.uses, program.params, program.inputs, program.constants, program.outs),
        "params": (model.paths, model.values),
        "batches": model.batches,
        "row_weights": model.row_weights,
        **settings,
    }
    texts = {name: text_of(value) for name, value in found.items()}
    return {
        **{name: _digest(text.encode()) if _is_long(text) else text for name, text in texts.items()},
        "versions": f"jaxprune {sys.modules[_PACKAGE].__version__}, jax {jax.__version__}, jaxlib {jaxlib.__version__}",
        "device": f"{backend.platform} {backend.device_kind}",
    }


def _is_long(text: str) -> bool:
    return len(text) > _LONGEST or DIGEST.search(text) is not None


def text_of(value: Any, inside: frozenset[int] = frozenset()) -> str:
    """A text of a value without addresses; arrays are told by a digest, functions by their code and what they hold."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _of_array(value)
    if isinstance(value, Identity):
        return text_of(value.value, inside)
    if id(value) in inside:
        return "..."
    inside = inside | {id(value)}
    of = functools.partial(text_of, inside=inside)
    match value:
        case Mapping():
            return "{" + ", ".join(sorted(f"{of(key)}: {of(item)}" for key, item in value.items())) + "}"
        case tuple() | list():
            name = "" if type(value) in (tuple, list) else type(value).__qualname__
            return f"{name}({', '.join(map(of, value))})"
        case set() | frozenset():
            return "{" + ", ".join(sorted(map(of, value))) + "}"
        case type():
            return f"{value.__module__}.{value.__qualname__}"
        case types.FunctionType():
            cells = [_cell(cell) for cell in value.__closure__ or ()]
            return (
                f"{value.__qualname__}{of((value.__code__, value.__defaults__, value.__kwdefaults__, cells))}"
            )
        case types.CodeType():
            return f"{value.co_code.hex()}{of((value.co_consts, value.co_names))}"
        case types.MethodType():
            return of((value.__func__, value.__self__))
        case functools.partial():
            return of((value.func, value.args, value.keywords))
        case types.ModuleType():
            return value.__name__
    if dataclasses.is_dataclass(value):
        fields = ((each.name, getattr(value, each.name, None)) for each in dataclasses.fields(value))
        return f"{type(value).__qualname__}({', '.join(f'{name}={of(item)}' for name, item in fields)})"
    inner = getattr(value, "__wrapped__", None)
    if inner is not None:  # what `jax.jit` returns
        return f"{type(value).__qualname__}{of(inner)}"
    return _ADDRESS.sub("...", repr(value))


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _of_array(value: Any) -> str:
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {_of_array(jax.random.key_data(value))}"
    array = np.ascontiguousarray(value)
    return f"{value.dtype}{list(value.shape)} {_digest(array.reshape(-1).view(np.uint8))}"


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()
