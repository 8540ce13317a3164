"""Options of `jaxprune compare` and their valid values."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jaxprune.deprecated import warn_renamed
from jaxprune.experiments.settings import check_between, check_common, check_share, of_the_result

Name = Literal[
    "imp", "gmp", "one-shot", "lamp", "minimum-keep", "rigl", "set", "static", "ac-dc",
    "magnitude-at-init", "snip", "grasp", "synflow", "group-lasso",
    "slimming",
]  # fmt: skip
Structure = Literal["unstructured", "2:4", "blocks", "channels", "units", "removed"]
Score = Literal["magnitude", "l1", "l2", "random", "snip", "grasp", "synflow", "taylor", "lamp", "fpgm"]
Scope = Literal["global", "local", "erk", "uniform"]
Scheduling = Literal[
    "one-shot", "recursive", "recursive-equal", "gradual", "gradual-linear", "before-training", "rigl", "set",
    "ac-dc",
]  # fmt: skip
Initialization = Literal["keep", "keep-restart", "lr", "rewind", "new"]

_DEFAULT: tuple[Name, ...] = ("one-shot", "lamp", "gmp", "rigl", "static", "synflow")
_LISTS = ("recipes", "structure", "scoring", "scope", "scheduling", "initialization", "sparsities")
_MOST_ROUNDS, _MOST_EVALUATIONS = 1000, 1000


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """Compare pruning methods with each other at several sparsities: named recipes, or every combination of choices.

    Every method trains for the same total number of steps, from the same weights and on the same batches of
    each seed. A dense network is trained too. Methods of several trainings (imp) divide the steps among them.

    Any of --structure, --scoring, --scope, --scheduling and --initialization asks for a grid: every combination of
    the values given, with the first of the possible values for what is not given. Combinations that have no meaning
    are left out; the results say which, and why.
    """

    recipes: tuple[Name, ...] = ()
    """Named recipes to compare; `python -c "import jaxprune as jp; print(jp.recipes.rigl(0.9))"` describes one.
    Default: one-shot lamp gmp rigl static synflow, or none beside a grid."""

    structure: tuple[Structure, ...] = ()
    """What is pruned together: single weights, 2 of 4 weights along the input axis, blocks of 4 x 4, output
    channels of each layer, or units across layers: masked while training and removed at the end (units), or removed
    in every round (removed: each size of each seed is compiled). Their latencies are measured."""

    scoring: tuple[Score, ...] = ()
    """Which weights or units are pruned first: those with the lowest of these scores."""

    scope: tuple[Scope, ...] = ()
    """Across what they are compared: all layers (global), each layer (local), or within a sparsity for each layer
    (erk, uniform). Default: global; erk for moving masks, which keep the number of each layer."""

    scheduling: tuple[Scheduling, ...] = ()
    """When: once in the middle of the steps, in --rounds with a training after each (of equal shares of what is
    left, or of the whole: recursive-equal), gradually (cubic or linear), before training, with moving masks (rigl,
    set), or in alternation with dense phases (ac-dc)."""

    initialization: tuple[Initialization, ...] = ()
    """From which values training continues after a pruning: keep lets weights and the learning-rate schedule
    continue, keep-restart restarts the schedule, lr rewinds the learning rate and the optimizer to
    --rewind-step, rewind the weights too, new draws new weights."""

    rounds: int = 4
    """Number of prunings of the recursive schedulings."""

    rewind_step: int = 0
    """The step to return to, for the initializations lr and rewind."""

    sparsities: tuple[float, ...] = (0.9, 0.97, 0.99)
    """Fractions of the prunable weights (for units: of all parameters) that are pruned at the end."""

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
    """Learning rate of Adam at the start of a training."""

    decay: Literal["cosine", "none"] = "cosine"
    """The learning rate falls to zero along a cosine over a training (over all of them if weights and schedule
    continue), or stays."""

    evaluations: int = 10
    """Number of evaluations along all steps, for the learning curves."""

    out: str = "runs/compare"
    """Folder for the results: tables (results.csv, results.json, times.json), plot.png, curves.png, latency.png."""

    resume: bool = False
    """Continue the interrupted run in --out, with the same settings."""

    overwrite: bool = False
    """Replace the run in --out."""

    def __post_init__(self):
        if "slimming" in self.recipes:
            warn_renamed("The recipe 'slimming'", "'group-lasso'", stacklevel=4)
            names = tuple("group-lasso" if name == "slimming" else name for name in self.recipes)
            object.__setattr__(self, "recipes", names)

    @property
    def has_grid(self) -> bool:
        """Whether combinations of choices were asked for."""
        return any((self.structure, self.scoring, self.scope, self.scheduling, self.initialization))

    @property
    def names(self) -> tuple[Name, ...]:
        """The named recipes to compare."""
        return self.recipes or (() if self.has_grid else _DEFAULT)

    def of_the_result(self) -> dict[str, Any]:
        """The settings on which the results depend, in their JSON form."""
        return {"command": "compare", **of_the_result(self)}

    def check(self) -> None:
        """Raises ValueError for a value that is not valid; the message is one line and names the option."""
        check_common(self)
        check_between("--rounds", self.rounds, 1, _MOST_ROUNDS)
        check_between("--rewind-step", self.rewind_step, 0)
        check_between("--evaluations", self.evaluations, 1, _MOST_EVALUATIONS)
        if not self.sparsities:
            raise ValueError("--sparsities must have at least one value.")
        for name in _LISTS:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"--{name} must not repeat a value, got {' '.join(map(str, values))}.")
        for sparsity in self.sparsities:
            check_share("--sparsities", sparsity)
        if self.rewind_step and not {"lr", "rewind"} & {*self.initialization}:
            raise ValueError("--rewind-step is for --initialization lr or rewind only.")
