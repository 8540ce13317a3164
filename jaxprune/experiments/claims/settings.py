"""Options of `jaxprune claims` and their valid values."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.experiments.settings import Settings, check_between, check_common, of_the_result

Point = Literal["scheduling", "scope", "initialization", "structure", "tickets"]

_POINTS: tuple[Point, ...] = ("scheduling", "scope", "initialization", "structure", "tickets")
_LEAST_STEPS = 20


@dataclasses.dataclass(frozen=True)
class ClaimsSettings:
    """Check what pruning articles say, point by point, each with a table and a plot.

    scheduling: one-shot against recursive pruning, from 10 to 99.9 %. scope: one threshold over all layers against
    one for each. initialization: weights kept, rewound, drawn anew, or the learning rate rewound, and after how many
    steps the dense accuracy is reached. structure: single weights against units, in size on disk, FLOPs and
    latency. tickets: iterative magnitude pruning with its two controls. Both sides of a claim train for the same
    number of steps, from the same weights and on the same batches of each seed. What does not show is said.
    """

    points: tuple[Point, ...] = _POINTS
    """The points to check."""

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's 1797 real digits of 8 x 8 pixels, or full MNIST from --data-dir."""

    data_dir: str | None = None
    """Folder with MNIST's four files: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
    t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz. Download them from
    https://storage.googleapis.com/cvdf-datasets/mnist/ ."""

    seeds: int = 3
    """Replicates, each with its own weights and batches."""

    seed: int = 0
    """Seed of all random numbers."""

    steps: int = 200
    """Training steps of one of the trainings of recursive pruning; the other side gets as many in all."""

    batch_size: int = 60
    """Images per step, drawn with replacement."""

    learning_rate: float = 1.2e-3
    """Learning rate of Adam at the start of a training; it falls to zero along a cosine (for tickets it stays)."""

    out: str = "runs/claims"
    """Folder for the results: claims.md with all tables, results.json, times.json, and a plot for each point."""

    resume: bool = False
    """Continue the interrupted run in --out, with the same settings."""

    overwrite: bool = False
    """Replace the run in --out."""

    def of_the_result(self) -> dict[str, Any]:
        """The settings on which the results depend, in their JSON form."""
        return {"command": "claims", **of_the_result(self)}

    def check(self) -> None:
        """Raises ValueError for a value that is not valid; the message is one line and names the option."""
        check_common(self)
        check_between("--steps", self.steps, _LEAST_STEPS)
        if not self.points:
            raise ValueError("--points must have at least one value.")
        if len(set(self.points)) < len(self.points):
            raise ValueError(f"--points must not repeat a value, got {' '.join(self.points)}.")

    def comparison(
        self, model: Literal["lenet", "cnn"], trainings: int, sparsities: tuple[float, ...], evaluations: int
    ) -> CompareSettings:
        """The settings of one point's comparison, of so many trainings in all."""
        return CompareSettings(
            sparsities=sparsities,
            data=self.data,
            data_dir=self.data_dir,
            model=model,
            seeds=self.seeds,
            seed=self.seed,
            steps=trainings * self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            evaluations=evaluations,
        )

    def tickets(self) -> Settings:
        """The settings of iterative magnitude pruning with its controls."""
        return Settings(
            data=self.data,
            data_dir=self.data_dir,
            seeds=self.seeds,
            seed=self.seed,
            steps=2 * self.steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )
