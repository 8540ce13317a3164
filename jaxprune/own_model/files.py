"""The files of a model, in the formats that are asked for or that this machine can write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxprune.delivery import export, onnx_model, stablehlo
from jaxprune.delivery._export import FORMATS
from jaxprune.delivery.report import Exported
from jaxprune.params import PyTree

Say = Callable[[str], None]

_MISSING = {
    "stablehlo": "it needs flatbuffers: pip install 'jaxprune[export]'",
    "onnx": "it needs jax2onnx and onnxruntime: pip install 'jaxprune[export]'",
}
# What an error of `jaxprune.export` says -> the same with options.
_REMEDIES = (
    ("pass batch=None for those of the example", "--fixed keeps those of the example"),
    ('leave out "onnx" from `formats`', "--formats stablehlo safetensors leaves it out"),
    (
        'leave it out with formats=("stablehlo", "safetensors")',
        "--formats stablehlo safetensors leaves it out",
    ),
    ("Leave it out from `formats`", "Leave it out from --formats"),
    ("pass a larger `tolerance`", "give a larger --tolerance"),
    (
        'add "safetensors" to `formats`, or pass constants=True',
        "add safetensors to --formats, or give --constants",
    ),
    ('add "safetensors" to `formats`', "add safetensors to --formats"),
    ("packed=True", "--packed"),
    ("`platforms`", "--platforms"),
)


def write_files(
    place: Path,
    fn: Callable[..., Any],
    params: PyTree,
    inputs: Sequence[Any],
    options: Any,
    say: Say,
    plan: Any = None,
    reference: tuple[Callable[..., Any], PyTree] | None = None,
) -> tuple[Exported, dict[str, str]]:
    """Exports a model to a new folder.

    Args:
      place: the folder.
      fn, params, inputs: the model.
      options: those of the command. Without formats all are written that can be.
      say: tells what is done next.
      plan, reference: as for `jaxprune.export`.

    Returns:
      What was exported, and for each format that was left out the reason.

    Raises:
      ImportError: if a package is missing for a format that was asked for; the message says what to install.
      ValueError: if a format that was asked for can't be written, or if none can.
    """
    left_out: dict[str, str] = {}
    formats = list(options.formats) or list(FORMATS)
    for name, check in (("stablehlo", stablehlo.check_installed), ("onnx", onnx_model.check_installed)):
        if name in formats:
            try:
                check()
            except ImportError as error:
                if options.formats:
                    raise ImportError(_as_options(error)) from error
                left_out[name] = _MISSING[name]
                formats.remove(name)
                say(f"the format {name} is left out: {_MISSING[name]}")
    while True:
        say(f"writing {', '.join(formats)}")
        try:
            done = export(
                place,
                fn,
                params,
                *inputs,
                batch=None if options.fixed or options.shapes else options.batch,
                shapes=options.shapes or None,
                constraints=options.constraints,
                formats=formats,
                packed=options.packed,
                constants=options.constants,
                platforms=options.platforms or None,
                tolerance=options.tolerance,
                latency_batches=options.latency_batches,
                plan=plan,
                reference=reference,
            )
            return done, left_out
        except ValueError as error:
            said = _as_options(error)
            if options.formats or "onnx" not in formats or ("ONNX" not in said and "onnx" not in said):
                raise ValueError(said) from error
            left_out["onnx"] = said
            formats.remove("onnx")
            say(f"the format onnx is left out: {said}")


def _as_options(error: Exception) -> str:
    """What an error of `jaxprune.export` says, its arguments as options of the command."""
    text = str(error)
    for argument, option in _REMEDIES:
        text = text.replace(argument, option)
    return text
