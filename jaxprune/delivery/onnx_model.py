"""A model as an ONNX file, by jax2onnx, and its runs in ONNX Runtime."""

from __future__ import annotations

import logging
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxprune.delivery.flat_model import FlatModel
from jaxprune.delivery.onnx_forms import in_onnx_forms
from jaxprune.delivery.stablehlo import first_lines, remedy

LARGEST = 1_900_000_000  # bytes of weights in one file: a protocol buffer ends at 2 GiB
_PATCHED = ("jax", "flax", "equinox", "einops", "dm_pix", "optax")


def check_installed() -> None:
    """Raises ImportError, with what to install, if jax2onnx or ONNX Runtime is missing."""
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the format \"onnx\" needs jax2onnx and onnxruntime ({error}): pip install 'jaxprune[export]', or leave "
            'it out with formats=("stablehlo", "safetensors").'
        ) from error


def write_onnx(path: Path, model: FlatModel) -> None:
    """Writes the function of the inputs, with the weights as constants.

    Raises:
      ValueError: if the function can't be traced at symbolic sizes, or has an operation that jax2onnx or ONNX lacks.
    """
    import onnx

    weights = list(model.weights.values())
    try:
        plain = in_onnx_forms(lambda *inputs: model.call(weights, inputs), model.specs)
        proto = _converted(plain, model)
        outside = {"save_as_external_data": True, "location": f"{path.name}.data"}
        large = sum(w.nbytes for w in weights) > LARGEST
        onnx.save_model(proto, str(path), **(outside if large else {}))
    except Exception as error:  # the converter raises errors of many kinds
        raise ValueError(
            f'`fn` can\'t be written as ONNX: {first_lines(error)}.{remedy(model)} Otherwise leave out "onnx" from '
            "`formats`."
        ) from error


def run_onnx(path: Path) -> Callable[..., Sequence[Any]]:
    """The function of the inputs of an ONNX file, in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures are raised as errors
    options.intra_op_num_threads = threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    used = {x.name for x in session.get_inputs()}

    def run(names: Sequence[str], inputs: Sequence[Any]) -> Sequence[Any]:
        return session.run(None, {n: np.asarray(x) for n, x in zip(names, inputs, strict=True) if n in used})

    return run


def threads() -> int:
    """The threads of ONNX Runtime: 0, its default, or one for each CPU if this process may use some of them only.

    By default it starts one for each core of the machine, also where they share a CPU and wait for each other.
    """
    if not hasattr(os, "sched_getaffinity"):
        return 0
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _converted(plain: Callable, model: FlatModel) -> Any:
    import jax2onnx

    with _unchanged():
        return jax2onnx.to_onnx(
            plain,
            inputs=list(model.specs),
            input_names=list(model.input_names),
            output_names=list(model.output_names),
            enable_double_precision=bool(jax.config.read("jax_enable_x64")),
        )


@contextmanager
def _unchanged() -> Iterator[None]:
    """Restores what the converter leaves changed: functions of JAX, log handlers, JAX's settings.

    It puts back most of what it replaces, but not `jnp.cumsum`. Other threads should not trace in the meantime.
    """
    before = [
        (module, name, value)
        for key, module in list(sys.modules.items())
        if isinstance(module, types.ModuleType)
        and key.split(".")[0] in _PATCHED
        and not any(part.startswith("_") for part in key.split("."))
        for name, value in list(vars(module).items())
        if callable(value) and not name.startswith("_")
    ]
    handlers, level, disabled = list(logging.root.handlers), logging.root.level, logging.root.manager.disable
    x64 = jax.config.read("jax_enable_x64")
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        if jax.config.read("jax_enable_x64") != x64:
            jax.config.update("jax_enable_x64", x64)
        for module, name, value in before:
            if vars(module).get(name) is not value:
                setattr(module, name, value)
