"""Options of `jaxprune compare` and their valid values."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxprune.deprecated import warn_renamed
from jaxprune.experiments.settings import check_common, check_share, of_the_result

Name = Literal[
    "imp", "gmp", "one-shot", "lamp", "minimum-keep", "rigl", "set", "static", "ac-dc",
    "magnitude-at-init", "snip", "grasp", "synflow", "group-lasso",
    "slimming",
]  # fmt: skip

_DEFAULT: tuple[Name, ...] = ("one-shot", "lamp", "gmp", "rigl", "static", "synflow")


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Compare pruning recipes with each other at several sparsities.

    Every recipe trains for the same total number of steps, from the same weights and on the same batches of
    each seed. A dense network is trained too. Iterative recipes (imp) divide the steps among their trainings.
    """

    recipes: tuple[Name, ...] = _DEFAULT
    """Recipes to compare; `python -c "import jaxprune as jp; print(jp.recipes.rigl(0.9))"` describes one."""

    sparsities: tuple[float, ...] = (0.9, 0.97, 0.99)
    """Fractions of the prunable weights that are pruned at the end."""

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's 1797 real digits of 8 x 8 pixels, or full MNIST from --data-dir."""

    data_dir: str | None = None
    """Folder with MNIST's four files: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
    t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz. Download them from
    https://storage.googleapis.com/cvdf-datasets/mnist/ ."""

    model: Literal["lenet", "cnn", "vgg"] = "lenet"
    """LeNet-300-100; two small convolutions and two dense layers; or five convolutions as in VGG."""

    seeds: int = 3
    """Replicates, each with its own weights and batches."""

    seed: int = 0
    """Seed of all random numbers."""

    steps: int = 400
    """Total number of training steps."""

    batch_size: int = 60
    """Images per step, drawn with replacement."""

    learning_rate: float = 1.2e-3
    """Learning rate of Adam at the start of a training; it decays to zero along a cosine."""

    out: str = "runs/compare"
    """Folder for the results: table (results.csv, results.json) and plot.png."""

    resume: bool = False
    """Continue the interrupted run in --out, with the same settings."""

    overwrite: bool = False
    """Replace the run in --out."""

    def __post_init__(self):
        if "slimming" in self.recipes:
            warn_renamed("The recipe 'slimming'", "'group-lasso'", stacklevel=4)
            names = tuple("group-lasso" if name == "slimming" else name for name in self.recipes)
            object.__setattr__(self, "recipes", names)

    def of_the_result(self) -> dict[str, Any]:
        """The settings on which the results depend, in their JSON form."""
        return {"command": "compare", **of_the_result(self)}

    def check(self) -> None:
        """Raises ValueError for a value that is not valid; the message is one line and names the option."""
        check_common(self)
        for option, values in (("--recipes", self.recipes), ("--sparsities", self.sparsities)):
            if not values:
                raise ValueError(f"{option} must have at least one value.")
            if len(set(values)) < len(values):
                raise ValueError(f"{option} must not repeat a value, got {' '.join(map(str, values))}.")
        for sparsity in self.sparsities:
            check_share("--sparsities", sparsity)
