"""Options of `jaxprune imp` and their valid values."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from jaxprune.experiments.data import TRAINING_IMAGES

# Settings on which the results do not depend: they may differ between a run and its continuation.
_NOT_OF_THE_RESULT = ("data_dir", "out", "resume", "overwrite")

# Beyond these a run takes weeks, or more memory than a machine has; slips of the keyboard lie far beyond.
_MOST_ROUNDS, _MOST_SEEDS, _MOST_STEPS, _MOST_EVALUATIONS = 1000, 1000, 10_000_000, 10_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """Find lottery tickets by iterative magnitude pruning, and compare them with two controls.

    A round trains a network, prunes the smallest of the remaining weights and rewinds the others. Under the
    masks of every round two controls are trained: the same masks with freshly drawn weights, and masks with
    the same number of weights in each layer at random places. All seeds run side by side in one program.
    """

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's 1797 real digits of 8 x 8 pixels, or full MNIST from --data-dir."""

    data_dir: str | None = None
    """Folder with MNIST's four files: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
    t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz. Download them from
    https://storage.googleapis.com/cvdf-datasets/mnist/ ."""

    model: Literal["mlp", "cnn"] = "mlp"
    """LeNet-300-100, or two small convolutions and two dense layers."""

    rounds: int = 14
    """Number of prunings; with the dense network there is one more training."""

    rate: float = 0.2
    """Fraction of the remaining weights that a round prunes."""

    output_rate: float | None = None
    """The rate of the output layer; only with --scope local. Default: half of --rate, as in the paper."""

    rewind: Literal["rewind", "lr", "finetune", "reinitialize"] = "rewind"
    """What follows a pruning. rewind: weights and optimizer return to --rewind-step; lr: only learning rate and
    optimizer return to it; finetune: training continues unchanged; reinitialize: new weights are drawn."""

    rewind_step: int = 0
    """Step of the dense training to return to, for --rewind rewind or lr."""

    scope: Literal["local", "global"] = "local"
    """Prune the same fraction of every layer, or the smallest weights of all layers together."""

    structure: Literal["unstructured", "channels", "blocks", "2:4"] = "unstructured"
    """The units of pruning: single weights, output channels (never those of the output layer), blocks of
    4 x 4, or 2 of every 4 weights along the input axis."""

    seeds: int = 3
    """Replicates, each with its own weights and batches."""

    seed: int = 0
    """Seed of all random numbers."""

    steps: int = 400
    """Training steps per round."""

    batch_size: int = 60
    """Images per step, drawn with replacement."""

    learning_rate: float = 1.2e-3
    """Learning rate of Adam."""

    every: int | None = None
    """Steps between two evaluations, for the minimum of the validation loss. Default: 20 evaluations per round."""

    out: str = "runs/imp"
    """Folder for the results: table (results.csv, results.json), plot.png and checkpoint/."""

    resume: bool = False
    """Continue the interrupted run in --out, with the same settings."""

    overwrite: bool = False
    """Replace the run in --out."""

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""
        return max(self.steps // 20, 1) if self.every is None else self.every

    @property
    def rate_of_output(self) -> float:
        """Fraction of the remaining weights of the output layer that a round prunes."""
        return self.rate / 2 if self.output_rate is None else self.output_rate

    def of_the_result(self) -> dict[str, Any]:
        """The settings on which the results depend."""
        return of_the_result(self)

    def check(self) -> None:
        """Raises ValueError for a value that is not valid; the message is one line and names the option."""
        check_common(self)
        check_between("--rounds", self.rounds, 1, _MOST_ROUNDS)
        check_between("--rewind-step", self.rewind_step, 0)
        check_between("--every", self.evaluate_every, 1)
        check_share("--rate", self.rate)
        check_share("--output-rate", self.rate_of_output)
        if self.evaluate_every > self.steps:
            raise ValueError(f"--every must be at most --steps {self.steps}, got {self.every}.")
        if self.steps // self.evaluate_every > _MOST_EVALUATIONS:
            raise ValueError(
                f"--every {self.every} makes {self.steps // self.evaluate_every} evaluations per round: with "
                f"--steps {self.steps} it must be at least {-(-self.steps // _MOST_EVALUATIONS)}."
            )
        if self.rewind_step >= self.steps:
            raise ValueError(f"--rewind-step must be below --steps {self.steps}, got {self.rewind_step}.")
        if self.rewind_step and self.rewind not in ("rewind", "lr"):
            raise ValueError(
                f"--rewind-step is for --rewind rewind or lr only: {self.rewind} does not return to a step."
            )
        if self.output_rate is not None and (self.scope == "global" or self.structure == "channels"):
            other = "--scope global" if self.scope == "global" else "--structure channels"
            raise ValueError(
                f"--output-rate can't be used with {other}: the output layer has no rate of its own."
            )
        final = 1 - (1 - self.rate) ** self.rounds
        if self.structure == "2:4" and final > 0.5 + 1e-6:
            most = int(math.log(0.5) / math.log(1 - self.rate) + 1e-6)
            raise ValueError(
                f"--structure 2:4 keeps half of the weights: with --rate {self.rate:g}, --rounds must be at most "
                f"{most}, got {self.rounds}."
            )


def of_the_result(settings: Any) -> dict[str, Any]:
    """Settings on which the results depend, in their JSON form: tuples are lists."""
    found = {k: v for k, v in dataclasses.asdict(settings).items() if k not in _NOT_OF_THE_RESULT}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def check_common(settings: Any) -> None:
    """Raises ValueError for a bad value of an option that the commands share."""
    check_between("--seeds", settings.seeds, 1, _MOST_SEEDS)
    check_between("--seed", settings.seed, 0, 2**32 - 1)
    check_between("--steps", settings.steps, 1, _MOST_STEPS)
    images = TRAINING_IMAGES[settings.data]
    check_between("--batch-size", settings.batch_size, 1, images, ", the number of training images")
    if not (math.isfinite(settings.learning_rate) and settings.learning_rate > 0):
        raise ValueError(f"--learning-rate must be a positive number, got {settings.learning_rate:g}.")
    # Weights are float32.
    if not 1e-37 < settings.learning_rate < 1e37:
        raise ValueError(f"--learning-rate must be in the range of float32, got {settings.learning_rate:g}.")
    if settings.resume and settings.overwrite:
        raise ValueError("--resume and --overwrite exclude each other.")
    if settings.data_dir is not None and settings.data == "digits":
        raise ValueError("--data-dir is for --data mnist only; the digits come with scikit-learn.")


def check_between(option: str, value: int, least: int, most: int | None = None, why: str = "") -> None:
    """Raises ValueError for a smaller or larger value; `why` explains `most`."""
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {_short(value)}.")
    if most is not None and value > most:
        raise ValueError(f"{option} must be at most {most}{why}, got {_short(value)}.")


def check_share(option: str, share: float) -> None:
    """Raises ValueError unless the value is between 0 and 1."""
    if not 0 < share < 1:
        hint = f" It is a fraction: {share:g} % is {share / 100:g}." if 1 < share < 100 else ""
        raise ValueError(f"{option} must be between 0 and 1, got {share:g}.{hint}")


def _short(value: int) -> str:
    """The number in digits, if they are short enough to read."""
    return str(value) if abs(value) < 10**20 else f"a number of {len(str(abs(value)))} digits"
