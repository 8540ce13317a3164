"""One-shot pruning of a small ResNet with BatchNorm: which shares, targets, methods and refits are worth it?

python benchmarks/one_shot_convnet.py --data DATA

DATA holds mnist/. A digit lies among parts of others, in random colours and noise, on 16 x 16 pixels: hard enough for
pruning to hurt. ResNet-8 (78 k weights, ten matrices) is trained on 30,000 such images, and pruned with 512 of them.
The accuracy on 4,000 images of other digits is measured. CPU seconds are those of all sparsities together.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import serialization

import jaxprune as jp
from jaxprune.experiments import data

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9)
CHANNELS = (0.25, 0.5)
IMAGES, TESTED, CALIBRATING, BATCH = 30_000, 4_000, 512, 128


class ResNet8(nn.Module):
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(x, width, stride, size):
            return nn.Conv(width, (size, size), stride, padding="SAME", use_bias=False)(x)

        def norm(x):
            return nn.BatchNorm(use_running_average=not self.train, momentum=0.95)(x)

        x = nn.relu(norm(conv(x, 16, 1, 3)))
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            y = nn.relu(norm(conv(x, width, stride, 3)))
            y = norm(conv(y, width, 1, 3))
            if stride != 1:
                x = norm(conv(x, width, stride, 1))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


def predict(variables: Any, x: Any) -> Any:
    return ResNet8().apply(variables, x)


def predict_in_training(variables: Any, x: Any) -> Any:
    return ResNet8(train=True).apply(variables, x, mutable=["batch_stats"])


def cluttered(digits: np.ndarray, labels: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 16, 16, 3) of a digit among parts of six others, and their labels."""
    draw = np.random.default_rng(seed)
    chosen = draw.integers(0, len(digits), n)
    images = np.zeros((n, 16, 16, 3), np.float32)
    for i in range(n):
        ground, colour = draw.uniform(0, 1, 3), draw.uniform(0, 1, 3)
        image = np.tile(ground, (32, 32, 1))
        for _ in range(6):
            other = digits[draw.integers(0, len(digits))]
            a, b = draw.integers(2, 16, 2)
            part = other[a : a + 12, b : b + 12, None]
            y, x = draw.integers(0, 21, 2)
            here = image[y : y + 12, x : x + 12]
            here[...] = here * (1 - part) + draw.uniform(0, 1, 3) * part
        y, x = draw.integers(0, 5, 2)
        here = image[y : y + 28, x : x + 28]
        digit = 0.9 * digits[chosen[i]][..., None]
        here[...] = here * (1 - digit) + colour * digit
        image += draw.normal(0, 0.1, image.shape)
        images[i] = image.reshape(16, 2, 16, 2, 3).mean((1, 3)) - 0.5
    return images, labels[chosen].astype(np.int32)


def train(x: np.ndarray, y: np.ndarray, epochs: int) -> Any:
    variables = jax.jit(ResNet8(train=True).init)(jax.random.key(0), x[:2])
    params, statistics = variables["params"], variables["batch_stats"]
    steps = len(x) // BATCH * epochs
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, 4e-3), weight_decay=1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, statistics, state, images, labels):
        def loss(params):
            logits, new = predict_in_training({"params": params, "batch_stats": statistics}, images)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return each.mean(), new["batch_stats"]

        grads, statistics = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), statistics, state

    draw = np.random.default_rng(5)
    for _ in range(epochs):
        order = draw.permutation(len(x))
        for k in range(len(x) // BATCH):
            at = order[k * BATCH : (k + 1) * BATCH]
            params, statistics, state = step(params, statistics, state, x[at], y[at])
    return {"params": params, "batch_stats": statistics}


class Lab:
    """The dense model, its calibration batches, and the ways to prune it."""

    def __init__(self, dense: Any, x: np.ndarray, tests: tuple[np.ndarray, np.ndarray]):
        self.dense, self.tests = dense, tests
        self.images = jnp.asarray(x[:CALIBRATING])
        self.batches = list(self.images.reshape(-1, BATCH, *x.shape[1:]))
        self._fisher: Any = None
        self._predict = jax.jit(predict)

    def accuracy(self, variables: Any) -> float:
        x, y = self.tests
        right = [
            np.argmax(self._predict(variables, x[k : k + 500]), -1) == y[k : k + 500]
            for k in range(0, len(x), 500)
        ]
        return float(np.mean(right))

    def reconstructed(self, sparsity: Any, **options: Any) -> Any:
        return jp.reconstruct(predict, self.dense, self.batches, sparsity, **options)[0]

    def magnitude(self, sparsity: float) -> Any:
        masks = jp.make_masks(jp.scores.magnitude(self.dense), sparsity, scope="global")
        return jp.apply_masks(self.dense, masks)

    def anew(self, variables: Any) -> Any:
        return jp.reestimate_statistics(predict_in_training, variables, self.batches)

    def fisher(self) -> Any:
        """Scores without labels, by the outputs in random directions."""
        if self._fisher is None:
            statistics = self.dense["batch_stats"]

            def along(params, sample):
                x, noise = sample
                return jnp.mean(noise * predict({"params": params, "batch_stats": statistics}, x))

            noise = jax.random.normal(jax.random.key(0), (CALIBRATING, 10))
            scores = jp.scores.fisher(along, self.dense["params"], (self.images, noise))
            self._fisher = {"params": scores, "batch_stats": jax.tree.map(jnp.zeros_like, statistics)}
        return self._fisher

    def by_fisher(self, sparsity: float) -> Any:
        where = jp.prunable(self.dense)
        return jp.allocate.from_scores(self.fisher(), sparsity, where=where, minimum=0.05)


def sparsified(lab: Lab) -> dict[str, Callable[[float], Any]]:
    """Row of the table -> a function from the sparsity to pruned variables."""
    run, dense = lab.reconstructed, lab.dense
    long: dict[str, Any] = {"method": jp.ADMM(rounds=40, ramp=30, damping=0.01)}
    squares = jp.LeastSquares(10)
    refit, shifts = jp.Refit(dense_targets=1.0), jp.Refit(dense_targets=1.0, weights=False)
    return {
        "global magnitude": lab.magnitude,
        "global magnitude, statistics anew": lambda s: lab.anew(lab.magnitude(s)),
        "`reconstruct`": run,
        "without targets": lambda s: run(s, dense_targets=0.0),
        "uniform shares, without targets": lambda s: run(jp.allocate.uniform(dense, s), dense_targets=0.0),
        "uniform shares": lambda s: run(jp.allocate.uniform(dense, s), dense_targets=0.5),
        "ERK shares": lambda s: run(jp.allocate.erk(dense, s), dense_targets=0.5),
        "Fisher shares": lambda s: run(lab.by_fisher(s), dense_targets=0.5),
        "`dense_targets=1`": lambda s: run(s, dense_targets=1.0),
        "scales and biases refitted": lambda s: run(s, refine=(shifts,)),
        "branches refitted": lambda s: run(s, refine=(refit,)),
        "long ADMM + least squares": lambda s: run(s, refine=(squares,), **long),
        "long ADMM + least squares, branches refitted": lambda s: run(s, refine=(squares, refit), **long),
    }


def narrowed(lab: Lab) -> dict[str, Callable[[float], Any]]:
    """Row of the table -> a function from the share of channels to variables with zeros in their place."""
    dense, groups = lab.dense, jp.find_groups(predict, lab.dense, lab.images[:1])

    def plan(share: float) -> Any:
        return jp.plan_removal(groups, dense, share, budget="units")

    def compensated(share: float) -> Any:
        return jp.compensate(predict, dense, plan(share), lab.batches)

    def refitted(share: float, settings: jp.Refit) -> Any:
        start = compensated(share)
        return jp.refit(predict, start, plan(share), lab.batches, settings, dense=dense)

    refit, shifts = jp.Refit(dense_targets=1.0), jp.Refit(dense_targets=1.0, weights=False)
    return {
        "L2 norm": lambda share: jp.apply_masks(dense, plan(share).masks(dense)),
        "`compensate`": compensated,
        "`compensate`, scales and biases refitted": lambda share: refitted(share, shifts),
        "`compensate`, branches refitted": lambda share: refitted(share, refit),
    }


def table(
    title: str, rows: dict[str, Callable[[float], Any]], shares: tuple[float, ...], lab: Lab, only: list[str]
) -> None:
    print(f"\n| {title} | {' | '.join(f'{share:.0%}' for share in shares)} | CPU s |")
    print("|---" * (len(shares) + 2) + "|", flush=True)
    for name, prune in rows.items():
        if only and name.strip("`") not in only:
            continue
        start = time.process_time()
        found = [jax.block_until_ready(prune(share)) for share in shares]
        spent = time.process_time() - start
        cells = " | ".join(f"{lab.accuracy(each):.3f}"[1:] for each in found)
        print(f"| {name} | {cells} | {spent:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("JAXPRUNE_DATA"), help="data folder")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument(
        "--params", type=Path, help="file of the trained variables: read, or written if missing"
    )
    parser.add_argument(
        "--rows", nargs="*", default=[], help="names of rows, without backquotes; all by default"
    )
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data (or the environment variable JAXPRUNE_DATA) must name the data folder.")
    sets = data.load("mnist", str(Path(args.data) / "mnist"))

    def images(part: Any, n: int, seed: int) -> Any:
        digits = np.asarray(part.images).reshape(-1, 28, 28)
        digits = (digits - digits.min()) / (digits.max() - digits.min())
        return cluttered(digits, np.asarray(part.labels), n, seed)

    x, y = images(sets.train, IMAGES, 0)
    if args.params and args.params.exists():
        example = jax.jit(ResNet8().init)(jax.random.key(0), x[:1])
        dense = serialization.from_bytes(example, args.params.read_bytes())
        dense = jax.tree.map(jnp.asarray, dense)
    else:
        dense = train(x, y, args.epochs)
        if args.params:
            args.params.write_bytes(serialization.to_bytes(dense))
    lab = Lab(dense, x, images(sets.test, TESTED, 1))
    print(f"dense {lab.accuracy(dense):.3f}", flush=True)
    table("weights pruned", sparsified(lab), SPARSITIES, lab, args.rows)
    table("channels removed", narrowed(lab), CHANNELS, lab, args.rows)


if __name__ == "__main__":
    main()
