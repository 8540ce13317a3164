"""Does an allocation from a sensitivity table beat the same sparsity everywhere, and one global threshold?

A network is trained; the table is measured on the validation images; then it is pruned once by magnitude under
each allocation at equal budget, and tested without further training and after a short one. Means over seeds
with one standard deviation. The CNN is compared at equal FLOPs as well, the others at equal weights.

    python benchmarks/sensitivity.py [--data digits|mnist] [--data-dir DIR] [--model mlp|cnn] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import jaxprune as jp
from jaxprune.experiments.data import load
from jaxprune.experiments.models import build

BATCH, LEARNING_RATE = 60, 1.2e-3
GRID = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995)


class Experiment:
    """A model and its data, with jitted training and testing."""

    def __init__(self, model: str, data: str, folder: str | None):
        found = load(data, folder)  # pyright: ignore[reportArgumentType]
        self.train_set, self.validation, self.test_set = (
            (jnp.asarray(split.images), jnp.asarray(split.labels)) for split in found
        )
        self.model = build(model)  # pyright: ignore[reportArgumentType]

    def logits(self, params: Any, images: jax.Array) -> Any:
        return self.model.apply({"params": params}, images)

    def loss_fn(self, params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(self.logits(params, batch[0]), batch[1]).mean()

    def trainer(self, steps: int) -> Callable[..., Any]:
        """(key, params, masks) -> params after as many steps of Adam under the masks."""
        images, labels = self.train_set

        def train(key: jax.Array, params: Any, masks: Any) -> Any:
            tx = jp.masked(optax.adam(LEARNING_RATE), masks)

            def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
                params, state = carry
                drawn = jax.random.randint(jax.random.fold_in(key, t), (BATCH,), 0, len(labels))
                grads = jax.grad(self.loss_fn)(params, (images[drawn], labels[drawn]))
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]

        return jax.jit(train)

    def tester(self) -> Callable[[Any], float]:
        images, labels = self.test_set

        @jax.jit
        def correct(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
            return jnp.sum(self.logits(params, images).argmax(-1) == labels)

        def accuracy(params: Any) -> float:
            starts = range(0, len(labels), 1000)
            found = sum(int(correct(params, images[i : i + 1000], labels[i : i + 1000])) for i in starts)
            return 100 * found / len(labels)

        return accuracy


def allocations(params: Any, table: jp.Sensitivity, sparsity: float) -> dict[str, Any]:
    """Masks of each method that prune the same number of weights."""
    scores = jp.scores.magnitude(params)
    shares = {
        "uniform": jp.allocate.uniform(params, sparsity),
        "ERK": jp.allocate.erk(params, sparsity),
        "sensitivity": jp.allocate.from_sensitivity(table, sparsity),
    }
    return {
        "uniform": jp.make_masks(scores, shares["uniform"]),
        "global": jp.make_masks(scores, sparsity),
        "ERK": jp.make_masks(scores, shares["ERK"]),
        "LAMP": jp.make_masks(jp.scores.lamp(params), sparsity),
        "sensitivity": jp.make_masks(scores, shares["sensitivity"]),
    }


def flops_allocations(
    params: Any, table: jp.Sensitivity, cost: Any, fisher: Any, sparsity: float
) -> dict[str, Any]:
    """Masks of each method that remove the same share of the FLOPs."""
    scores = jp.scores.magnitude(params)
    return {
        "uniform": jp.make_masks(scores, jp.allocate.uniform(params, sparsity)),
        "magnitude per FLOP": jp.make_masks(scores, jp.allocate.flops(scores, sparsity, cost)),
        "Fisher per FLOP": jp.make_masks(scores, jp.allocate.flops(fisher, sparsity, cost)),
        "sensitivity": jp.make_masks(scores, jp.allocate.from_sensitivity(table, sparsity, "flops", cost)),
    }


def run(args: argparse.Namespace) -> list[tuple[str, float, str, list[float], list[float]]]:
    """Rows (budget, sparsity, method, accuracies pruned, accuracies trained on), one number a seed."""
    experiment = Experiment(args.model, args.data, args.data_dir)
    train, tune, accuracy = experiment.trainer(args.steps), experiment.trainer(args.tune), experiment.tester()
    sample = experiment.train_set[0][:1]
    few = jax.tree.map(lambda x: x[:256], experiment.train_set)
    found: dict[tuple[str, float, str], tuple[list[float], list[float]]] = {}
    for seed in range(args.seeds):
        keys = jax.random.split(jax.random.key(seed), 3)
        params: Any = experiment.model.init(keys[0], sample)["params"]
        full = jax.tree.map(lambda w: jnp.ones(w.shape, bool) if w.ndim > 1 else jnp.array(True), params)
        params = train(keys[1], params, full)
        found.setdefault(("", 0.0, "dense"), ([], []))[0].append(accuracy(params))
        table = jp.sensitivity(experiment.loss_fn, params, experiment.validation, GRID)
        if seed == 0:
            print(table)
        cost = jp.allocate.weight_flops(experiment.logits, params, sample)
        fisher = jax.jit(lambda p: jp.scores.fisher(experiment.loss_fn, p, few))(params)
        for sparsity in args.sparsities:
            by_budget = {"weights": allocations(params, table, sparsity)}
            if args.model == "cnn":
                by_budget["FLOPs"] = flops_allocations(params, table, cost, fisher, sparsity)
            for budget, methods in by_budget.items():
                for name, masks in methods.items():
                    pruned = jp.apply_masks(params, masks)
                    row = found.setdefault((budget, sparsity, name), ([], []))
                    row[0].append(accuracy(pruned))
                    if args.tune:
                        row[1].append(accuracy(tune(keys[2], pruned, jax.tree.map(jnp.asarray, masks))))
    return [(*key, *row) for key, row in found.items()]


def spread(values: list[float]) -> str:
    if not values:
        return "–"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument(
        "--data-dir",
        default=os.path.join(os.environ.get("JAXPRUNE_DATA", ""), "mnist"),
        help="folder with MNIST's files; default: mnist in the folder that JAXPRUNE_DATA names",
    )
    parser.add_argument("--model", choices=("mlp", "cnn"), default="mlp")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the dense network")
    parser.add_argument("--tune", type=int, default=300, help="training steps after pruning, 0 for none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsities", type=float, nargs="+", default=(0.7, 0.8, 0.9, 0.95))
    parser.add_argument("--markdown", help="write the table to this file")
    args = parser.parse_args()
    rows = run(args)
    title = f"{args.model} on {args.data}: test accuracy (%), {args.seeds} seeds, {args.steps} steps"
    columns = ("budget", "sparsity", "allocation", "pruned", f"after {args.tune} steps")
    lines = [
        (budget, f"{sparsity:g}", name, spread(pruned), spread(tuned))
        for budget, sparsity, name, pruned, tuned in rows
    ]
    table = Table(*columns, title=title)
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    if args.markdown:
        with open(args.markdown, "w", encoding="utf-8") as file:
            file.write(
                f"{title}. JAX {jax.__version__} on {jax.default_backend()}, {platform.machine()}.\n\n"
            )
            for line in (columns, ("---",) * len(columns), *lines):
                file.write("| " + " | ".join(line) + " |\n")


if __name__ == "__main__":
    main()
