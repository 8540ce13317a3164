"""`jaxprune shrink`: its options, and how it makes a model smaller."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jaxprune.commands.export import ExportOptions, check_at_least, check_share, write_model

_BUDGETS = ("params", "flops", "bytes", "latency", "units")


@dataclasses.dataclass(frozen=True)
class ShrinkOptions(ExportOptions):
    """Make a model of your own smaller, by removing channels, heads, hidden units or layers, and export it.

    Budgets are shares of the dense model that the small one may have at most: --params 0.5 leaves half of the
    parameters. Units with the lowest scores are removed, kept weights are refitted where there are calibration
    batches, the small function is verified, and the folder has everything that `jaxprune export` writes, the plan,
    and sizes, latencies and evaluation of both models. It appears complete or not at all.
    """

    params: float | None = None
    """Share of the parameters that the small model has at most."""

    flops: float | None = None
    """Share of the FLOPs at the example inputs that the small model has at most."""

    bytes: float | None = None
    """Share of the parameters' bytes that the small model has at most."""

    latency: float | None = None
    """Share of the latency at the example inputs that the small model has, measured on this machine."""

    runtime: Literal["jax", "onnx"] = "jax"
    """Where --latency is measured: JAX, or ONNX Runtime."""

    units: float | None = None
    """Share of the units that are kept."""

    layers: int = 0
    """Number of layers (attention and MLP apart) to leave out, before units are removed."""

    score: Literal["magnitude", "activations", "taylor", "obs", "fpgm", "batch_norm", "reap"] | None = None
    """What ranks the units. magnitude: L2 norm of their weights; activations: mean absolute activation (needs
    batches); taylor: change of the loss (batches and loss); obs: error once the rest is refitted (batches); fpgm:
    distance to the others; batch_norm: scales of the norms that units have; reap: experts by what they add
    (batches). Default: activations with batches, else magnitude."""

    scope: Literal["local", "global"] | None = None
    """local: the same share of each group of units. global: what saves the most for the least error of the outputs
    first, which is measured; with --units the lowest scores of all groups. Default: global for --latency, else
    local."""

    only: tuple[str, ...] = ()
    """Names or patterns, as `jaxprune inspect` prints them, of the only units that may be removed."""

    exclude: tuple[str, ...] = ()
    """Names or patterns of units that are all kept."""

    alike: tuple[str, ...] = ()
    """Patterns of groups that keep the same number of units each, for one number in a configuration; auto for all
    repeated layers."""

    round_to: int | None = None
    """The number of kept units of a group is a multiple of this. Default: 8 in groups of at least 32 units, since odd
    widths can be slower than the dense one, and 1 in the others; 1 with --units."""

    minimum: int = 1
    """Least number of units that each group keeps."""

    layer_score: Literal["influence", "loss", "taylor", "norm"] | None = None
    """What ranks the layers. influence: how much they turn what passes them (needs batches); loss, taylor: how much
    the loss rises without them (batches and loss); norm: of their weights. Default: influence with batches, else
    norm."""

    layer_level: Literal["parts", "blocks"] = "parts"
    """Leave out attention and MLP apart, or whole blocks."""

    keep_layers: tuple[str, ...] = ()
    """Names or patterns of layers that are kept."""

    no_compensate: bool = False
    """Do not refit the kept weights on the calibration batches."""

    distill: int = 0
    """Steps of training toward the dense model's outputs on the calibration batches, without labels."""

    learning_rate: float = 1e-4
    """Learning rate of Adam at the start of --distill; it falls to zero along a cosine."""

    distill_loss: Literal["mse", "kl"] = "mse"
    """Squared difference of the outputs, or the divergence of their softmax over the last axis."""

    @property
    def budget(self) -> tuple[str, float] | None:
        """The name and the share of the budget; None if only layers are left out."""
        return next(
            ((name, getattr(self, name)) for name in _BUDGETS if getattr(self, name) is not None), None
        )

    def check(self) -> None:
        """Raises ValueError for a value that is not valid; the message is one line and names the option."""
        super().check()
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        for name in given:
            check_share(f"--{name}", getattr(self, name))
        if len(given) > 1:
            raise ValueError(f"give one budget, not both --{given[0]} and --{given[1]}.")
        if not given and not self.layers:
            raise ValueError(
                "nothing to remove: give --params 0.5 (or --flops, --bytes, --latency, --units) for the share "
                "that stays, or --layers 2."
            )
        check_at_least("--layers", self.layers, 0)
        if self.round_to is not None:
            check_at_least("--round-to", self.round_to, 1)
        if self.latency is not None and self.layers:
            raise ValueError("--latency can't be used with --layers: it is measured for the units alone.")
        if self.latency is None and self.runtime != "jax":
            raise ValueError("--runtime is about --latency: give it too.")
        check_at_least("--minimum", self.minimum, 1)
        check_at_least("--distill", self.distill, 0)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"--learning-rate must be a positive number, got {self.learning_rate:g}.")
        if "auto" in self.alike and len(self.alike) > 1:
            raise ValueError("--alike auto is for all repeated layers: give it alone, or patterns.")
        of_units = ("score", "only", "exclude", "alike", "no_compensate")
        wrong = next((name for name in of_units if getattr(self, name)), None)
        if not given and wrong:
            raise ValueError(
                f"--{wrong.replace('_', '-')} is about units: give a budget such as --params 0.5 too."
            )
        if self.layers and self.score == "taylor":
            raise ValueError("--score taylor can't be used with --layers: the loss is that of all layers.")
        if not self.layers and (self.layer_score or self.keep_layers or self.layer_level != "parts"):
            raise ValueError(
                "--layer-score, --layer-level and --keep-layers are about --layers: give it too."
            )


def run(options: ShrinkOptions) -> None:
    """Makes the small model, writes its files and prints it beside the dense one.

    Raises:
      ValueError: if options, folder or model can't be used or the budget can't be met; nothing is written then.
      ImportError: if a package for a format is missing that was asked for.
    """

    def write(of: Any, place: Path, say: Callable[[str], None]) -> dict[str, Any]:
        from jaxprune.own_model.shrinking import shrink

        if options.distill and not of.batches:
            raise ValueError("--distill needs calibration batches: let the model's `batches` be some.")
        return shrink(of, options.model, options, place, say)

    write_model(options, write)
