"""`jaxprune export`: its options, and how it writes a model's files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import tyro

from jaxprune.commands.new_folder import new_folder
from jaxprune.commands.quiet import Output


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write a model of your own as files that run without its code and without jaxprune.

    The folder has weights.safetensors, model.stablehlo, model.onnx, load.py that runs them, and report.md; each file
    is checked against the function. It appears complete or not at all. `jaxprune.Model` says what build() returns.
    """

    model: tyro.conf.Positional[str]
    """my_file.py:build or package.module:build; the function is `build` if none is named."""

    out: str
    """The folder to write; it must be new, or empty."""

    formats: tuple[Literal["stablehlo", "onnx", "safetensors"], ...] = ()
    """The formats to write. Default: all that are installed and that can express the model."""

    batch: str = "b"
    """Name of the leading axis of each input, whose size may vary."""

    fixed: bool = False
    """Keep all sizes of the example inputs."""

    shapes: tuple[str, ...] = ()
    """In place of --batch a text for each input, such as "b, s": names for sizes that may vary, _ for the others."""

    constraints: tuple[str, ...] = ()
    """What holds for the names of --shapes, such as "s <= 512"."""

    packed: bool = False
    """Leave zeros out of weights.safetensors, bit for bit: for masked models."""

    constants: bool = False
    """Put the weights into model.stablehlo, which otherwise takes them as inputs."""

    platforms: tuple[str, ...] = ()
    """Where model.stablehlo shall run: cpu, cuda, tpu. Default: this machine's."""

    tolerance: float | None = None
    """Largest difference of a file to the function, relative to the largest output. Default: 1e-4, more for bf16."""

    latency_batches: tuple[int, ...] = (1, 32)
    """Batches whose latencies are measured; none if nothing follows."""

    overwrite: bool = False
    """Replace the exported model in --out."""

    json: bool = False
    """Print one JSON object on stdout, which is also summary.json in the folder."""

    def check(self) -> None:
        """Raises ValueError for a value that is not valid; the message is one line and names the option."""
        if self.fixed and (self.shapes or self.batch != "b"):
            raise ValueError("--fixed keeps all sizes: it can't be used with --shapes or --batch.")
        if self.constraints and not self.shapes:
            raise ValueError("--constraints are about the names of --shapes: give these too.")
        if not self.batch.isidentifier():
            raise ValueError(f"--batch must be a name such as b, got {self.batch!r}.")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"--tolerance must be a positive number, got {self.tolerance:g}.")
        for batch in self.latency_batches:
            check_at_least("--latency-batches", batch, 1)
        if len(set(self.formats)) < len(self.formats):
            raise ValueError(f"--formats must not repeat a format, got {' '.join(self.formats)}.")


def run(options: ExportOptions) -> None:
    """Writes the files and prints what they are.

    Raises:
      ValueError: if options, folder or model can't be used; nothing is written then.
      ImportError: if a package for a format is missing that was asked for.
    """

    def write(of: Any, place: Path, say: Callable[[str], None]) -> dict[str, Any]:
        from jaxprune.own_model.shrinking import export_as_it_is

        return export_as_it_is(of, options.model, options, place, say)

    write_model(options, write)


def write_model(options: Any, write: Callable[[Any, Path, Callable[[str], None]], dict[str, Any]]) -> None:
    """Loads the model and lets `write` (model, place, say) fill the folder; then prints what it returns."""
    options.check()
    from jaxprune.own_model.loading import file_of, load_model

    with Output(options.json) as output, new_folder(options.out, options.overwrite) as place:
        output.say(f"loading {options.model}")
        model = load_model(options.model)
        from jaxprune.own_model.checking import checked
        from jaxprune.own_model.summary import summary_text

        found = write(checked(model, file_of(options.model)), place, output.say)
        shown = {**found, "folder": options.out}
        output.show(json.dumps(shown) if options.json else summary_text(found, options.out))


def check_at_least(option: str, value: int, least: int) -> None:
    """Raises ValueError for a smaller value."""
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {value}.")


def check_share(option: str, share: float) -> None:
    """Raises ValueError unless a value is a share of what stays."""
    if not (math.isfinite(share) and 0 < share < 1):
        hint = (
            f" It is a share of the dense model: {share:g} % is {share / 100:g}." if 1 < share <= 100 else ""
        )
        raise ValueError(f"{option} must be between 0 and 1, got {share:g}.{hint}")
