"""Options of `jaxprune imp`, and which values they take."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from jaxprune.experiments.data import TRAINING_IMAGES

# Settings that say where and how, not what: they may differ between a run and its continuation.
_NOT_OF_THE_RESULT = ("data_dir", "out", "resume", "overwrite")

# Beyond these a run takes weeks, or more memory than a machine has; slips of the keyboard lie far beyond.
_MOST_ROUNDS, _MOST_SEEDS, _MOST_STEPS, _MOST_EVALUATIONS = 1000, 1000, 10_000_000, 10_000


@dataclasses.dataclass(frozen=True)
class Settings:
    """Find lottery tickets by iterative magnitude pruning, and compare them with two controls.

    A round trains a network, prunes the smallest weights of what is left and rewinds the others. Under the
    masks of every round two controls are trained: the same masks with freshly drawn weights, and masks with
    the same number of weights in each layer at random places. All seeds run side by side in one program.
    """

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's 1797 real digits of 8 x 8 pixels, or full MNIST from --data-dir."""

    data_dir: str | None = None
    """Folder with MNIST's four files: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
    t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz. They can be had from
    https://storage.googleapis.com/cvdf-datasets/mnist/ ."""

    model: Literal["mlp", "cnn"] = "mlp"
    """LeNet-300-100, or two small convolutions and two dense layers."""

    rounds: int = 14
    """Prunings; with the dense network there is one training more."""

    rate: float = 0.2
    """Share of the remaining weights that a round prunes."""

    output_rate: float | None = None
    """The same for the output layer; only with --scope local. Default: half of --rate, as in the paper."""

    rewind: Literal["rewind", "lr", "finetune", "reinitialize"] = "rewind"
    """What follows a pruning: weights and optimizer go back to --rewind-step; only the learning rate and the
    optimizer go back; all goes on as it is; weights are drawn anew."""

    rewind_step: int = 0
    """Step of the dense training to go back to, for --rewind rewind or lr."""

    scope: Literal["local", "global"] = "local"
    """Prune the same share of every layer, or the smallest weights of all layers together."""

    structure: Literal["unstructured", "channels", "blocks", "2:4"] = "unstructured"
    """What is pruned together: single weights, output channels (never those of the output layer), blocks of
    4 x 4, or 2 of every 4 weights along the input axis."""

    seeds: int = 3
    """Replicates, each with its own weights and batches."""

    seed: int = 0
    """Where all random numbers come from."""

    steps: int = 400
    """Training steps a round."""

    batch_size: int = 60
    """Images a step, drawn with replacement."""

    learning_rate: float = 1.2e-3
    """Of Adam."""

    every: int | None = None
    """Evaluate every so many steps, to find the one of minimum validation loss. Default: 20 times a round."""

    out: str = "runs/imp"
    """Folder for the results: table (results.csv, results.json), plot.png and checkpoint/."""

    resume: bool = False
    """Go on with the interrupted run in --out, with the same settings."""

    overwrite: bool = False
    """Replace the run that is in --out."""

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""
        return max(self.steps // 20, 1) if self.every is None else self.every

    @property
    def rate_of_output(self) -> float:
        """Share that a round prunes of the output layer."""
        return self.rate / 2 if self.output_rate is None else self.output_rate

    def of_the_result(self) -> dict[str, Any]:
        """Those that the results depend on."""
        return of_the_result(self)

    def check(self) -> None:
        """Raises ValueError for a value that makes no sense; the message is one line and names the option."""
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
                f"--every {self.every} makes {self.steps // self.evaluate_every} evaluations a round: with "
                f"--steps {self.steps} take at least {-(-self.steps // _MOST_EVALUATIONS)}."
            )
        if self.rewind_step >= self.steps:
            raise ValueError(f"--rewind-step must be below --steps {self.steps}, got {self.rewind_step}.")
        if self.rewind_step and self.rewind not in ("rewind", "lr"):
            raise ValueError(
                f"--rewind-step goes with --rewind rewind or lr; {self.rewind} goes back to no step."
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
                f"--structure 2:4 keeps half of the weights: at --rate {self.rate:g} take at most "
                f"--rounds {most}, got {self.rounds}."
            )


def of_the_result(settings: Any) -> dict[str, Any]:
    """Settings that the results depend on, as JSON has them: tuples are lists."""
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
        raise ValueError(
            f"--learning-rate must be a number that float32 has, got {settings.learning_rate:g}."
        )
    if settings.resume and settings.overwrite:
        raise ValueError("--resume and --overwrite exclude each other.")
    if settings.data_dir is not None and settings.data == "digits":
        raise ValueError("--data-dir goes with --data mnist; the digits come with scikit-learn.")


def check_between(option: str, value: int, least: int, most: int | None = None, why: str = "") -> None:
    """Raises ValueError for a smaller or a larger value; `why` tells where `most` comes from."""
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {_short(value)}.")
    if most is not None and value > most:
        raise ValueError(f"{option} must be at most {most}{why}, got {_short(value)}.")


def check_share(option: str, share: float) -> None:
    """Raises ValueError unless it is between 0 and 1."""
    if not 0 < share < 1:
        hint = f" It is a fraction: {share:g} % is {share / 100:g}." if 1 < share < 100 else ""
        raise ValueError(f"{option} must be between 0 and 1, got {share:g}.{hint}")


def _short(value: int) -> str:
    """In digits as long as these can be read."""
    return str(value) if abs(value) < 10**20 else f"a number of {len(str(abs(value)))} digits"
