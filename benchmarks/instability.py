"""From which step are networks and tickets stable to the noise of SGD, and do tickets succeed where they are?

    python benchmarks/instability.py lenet --data-dir DIR       # LeNet-300-100 on full MNIST
    python benchmarks/instability.py resnet --data-dir DIR      # ResNet-8 with BatchNorm on MNIST, averaged to 8 x 8
    python benchmarks/instability.py checks --data-dir DIR      # the sanity checks of both

Each writes results to `runs/tickets`, from which `instability_figures.py` makes tables and figures. DIR holds the four
files of MNIST. In `lenet` and `resnet` one program has all seeds and split steps: the tickets of iterative pruning
rewound to every step k, and for the dense network, for tickets of two sparsities and for shuffled masks the error
along the line between two copies that part at k.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import jaxprune as jp
from jaxprune.experiments import data
from jaxprune.experiments.models import LeNet300100

RUNS = Path("runs/tickets")
SHUFFLED = "shuffled"


class ResNet8(nn.Module):
    """Three residual blocks of two 3 x 3 convolutions with BatchNorm, after He et al., 2015, arXiv:1512.03385.

    It always normalises by the statistics of its batch: along a line between two networks running ones are wrong.
    """

    channels: tuple[int, ...] = (8, 16, 32)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        def normed(x: jax.Array, features: int, size: int, stride: int = 1) -> jax.Array:
            x = nn.Conv(
                features, (size, size), strides=stride, use_bias=False, conv_general_dilated=jp.matmul_conv
            )(x)
            return nn.BatchNorm(use_running_average=False)(x)

        x = nn.relu(normed(images, self.channels[0], 3))
        for block, features in enumerate(self.channels):
            stride = 2 if block else 1
            branch = normed(nn.relu(normed(x, features, 3, stride)), features, 3)
            x = nn.relu(branch + (normed(x, features, 1, stride) if block else x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A network, its data and its training. images: uint8 or float; scale: applied to a batch of them."""

    model: nn.Module
    train: data.Split
    test: data.Split
    tx: optax.GradientTransformation
    batch_size: int
    steps: int
    splits: tuple[int, ...]
    sparsities: tuple[float, ...]
    shown: tuple[int, ...]  # rounds whose tickets are measured
    scale: Callable[[jax.Array], jax.Array]

    def loss_and_error(self, params: Any, batch: data.Split) -> tuple[jax.Array, jax.Array]:
        logits: Any = self.model.apply({"params": params}, self.scale(batch.images), mutable=["batch_stats"])[
            0
        ]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return losses.mean(), 100 * (logits.argmax(-1) != batch.labels).mean()

    def train_step(self, state: TrainState, batch: data.Split) -> tuple[TrainState, dict[str, jax.Array]]:
        loss, grads = jax.value_and_grad(lambda p: self.loss_and_error(p, batch)[0])(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss}

    def batch_fn(self, key: jax.Array, step: jax.Array) -> data.Split:
        drawn = jax.random.randint(
            jax.random.fold_in(key, step), (self.batch_size,), 0, len(self.train.labels)
        )
        return data.Split(self.train.images[drawn], self.train.labels[drawn])

    def evaluate(self, state: TrainState) -> dict[str, jax.Array]:
        loss, error = self.loss_and_error(state.params, self.test)
        return {"loss": loss, "error": error}

    def init_fn(self, key: jax.Array) -> Any:
        return self.model.init(key, self.scale(self.train.images[:1]))["params"]

    def state(self, key: jax.Array) -> TrainState:
        return TrainState.create(apply_fn=None, params=self.init_fn(key), tx=self.tx)  # pyright: ignore[reportArgumentType]

    def imp(self, step: int = 0, **choices: Any) -> jp.IMP:
        return jp.imp(
            self.train_step,
            self.batch_fn,
            steps=self.steps,
            sparsities=self.sparsities,
            rewind=jp.Rewind(step),
            evaluate=self.evaluate,
            **choices,
        )

    def even_or_odd(self) -> Task:
        """Another task on the same images."""
        of_task = (data.Split(split.images, split.labels % 2) for split in (self.train, self.test))
        train, test = of_task
        return dataclasses.replace(self, train=train, test=test)


def lenet(folder: str) -> Task:
    train, _, test = data.mnist(folder)
    low = min(train.images.min(), test.images.min())
    step = (train.images.max() - low) / 255

    def as_bytes(split: data.Split) -> data.Split:
        pixels = np.round((split.images - low) / step).astype(np.uint8)
        return data.Split(jnp.asarray(pixels), jnp.asarray(split.labels))  # type: ignore[arg-type]

    return Task(
        LeNet300100(),
        as_bytes(train),
        as_bytes(test),
        jp.masked(optax.adam(1.2e-3)),
        batch_size=60,
        steps=1200,
        splits=(0, 25, 50, 100, 200, 400, 800),
        sparsities=(0.5, 0.75, 0.875, 0.9375, 0.96875),
        shown=(3, 5),
        scale=lambda images: images * step + low,
    )


def resnet(folder: str) -> Task:
    train, _, test = data.mnist(folder)

    def small(split: data.Split, most: int) -> data.Split:
        """Means over 3 x 3 pixels of the middle 24 x 24."""
        middle = split.images[:most, 2:26, 2:26].reshape(-1, 8, 3, 8, 3, 1)
        return data.Split(jnp.asarray(middle.mean((2, 4))), jnp.asarray(split.labels[:most]))  # type: ignore[arg-type]

    steps = 800
    return Task(
        ResNet8(),
        small(train, 55000),
        small(test, 5000),
        jp.masked(optax.sgd(optax.cosine_decay_schedule(0.2, steps), momentum=0.9)),
        batch_size=32,
        steps=steps,
        splits=(0, 5, 10, 25, 50, 100, 200),
        sparsities=(0.5, 0.75, 0.875, 0.9375),
        shown=(2, 4),
        scale=lambda images: images,
    )


TASKS = {"lenet": lenet, "resnet": resnet}
CHECKED = (("lenet", 0), ("resnet", 0), ("resnet", 50))  # task and step to rewind to


def keys_and_states(task: Task, seeds: int) -> tuple[jax.Array, TrainState]:
    keys = jax.random.split(jax.random.key(2024), seeds)
    return keys, jax.jit(jax.vmap(lambda key: task.state(jax.random.fold_in(key, 2**31))))(keys)


def instabilities(task: Task, seeds: int, points: int) -> dict[str, Any]:
    """Everything but the sanity checks, from one program."""
    late = jp.late_rewinding(task.imp(keep_masks=True), task.splits)
    made = jp.instability(
        task.train_step, task.batch_fn, task.evaluate, steps=task.steps, splits=task.splits, points=points
    )

    def whole(key: jax.Array, state: TrainState) -> Any:
        history = late.run(key, state)
        chosen = [jax.tree.map(lambda m, r=r: m[:, r], history.masks) for r in (0, *task.shown)]
        chosen.append(jax.vmap(lambda m: jp.shuffle_masks(m, key=key))(chosen[-1]))
        levels = jax.tree.map(lambda *masks: jnp.stack(masks), *chosen)
        return history._replace(masks=()), jax.lax.map(lambda masks: made.run(key, state, masks), levels)

    history, rows = compiled_and_run(jax.vmap(whole), *keys_and_states(task, seeds))
    kept = [f"{100 * (1 - ([0.0, *task.sparsities][r])):.3g} %" for r in (0, *task.shown)]
    return {
        "names": ["dense", *(f"{k} kept" for k in kept[1:]), f"{kept[-1]} kept, {SHUFFLED}"],
        "splits": list(task.splits),
        "steps": task.steps,
        "history": history._asdict() | {"masks": None},
        "rows": rows._asdict(),
    }


def checks(task: Task, seeds: int, step: int) -> dict[str, Any]:
    """Name of the variant -> errors of the seeds, for the ticket of the last round, rewound to a step."""
    imp, other = task.imp(step), task.even_or_odd().imp(step)

    def find(key: jax.Array, state: TrainState) -> Any:
        carry, dense = imp.step(imp.init(key, state))
        trained, start = carry.state.params, carry.snapshot
        carry = jax.lax.scan(lambda c, _: imp.step(c), carry, length=len(task.sparsities))[0]
        moved = jax.lax.scan(
            lambda c, _: other.step(c), other.init(key, state), length=len(task.sparsities) + 1
        )[0]
        return start, trained, carry.masks, moved.masks, dense.evaluation["error"]

    def check(key: jax.Array, start: Any, trained: Any, masks: Any, of_seed: Any, of_task: Any) -> Any:
        train_key, variant_key = jax.random.split(jax.random.fold_in(key, 1 + 2**31))

        def train(params: Any, held: Any) -> jax.Array:
            return imp.train(train_key, start.replace(params=params), held, step)[1].evaluation["error"]

        return jp.sanity_checks(
            train,
            start.params,
            masks,
            key=variant_key,
            score=lambda _: jp.scores.magnitude(trained),
            init_fn=task.init_fn,
            others={"mask of another seed": of_seed, "mask of even/odd": of_task},
        )

    keys, states = keys_and_states(task, seeds)
    start, trained, masks, of_task, dense = compiled_and_run(jax.vmap(find), keys, states)
    of_seed = jax.tree.map(lambda m: jnp.roll(m, 1, axis=0), masks)
    found = compiled_and_run(jax.vmap(check), keys, start, trained, masks, of_seed, of_task)
    return {"dense": dense, **found}


def compiled_and_run(fn: Callable[..., Any], *args: Any) -> Any:
    began = time.process_time()
    program = jax.jit(fn).lower(*args).compile()
    ready = time.process_time()
    result = jax.block_until_ready(program(*args))
    print(f"CPU s: compile {ready - began:.0f}, run {time.process_time() - ready:.0f}", flush=True)
    return result


def save(name: str, result: Any) -> None:
    RUNS.mkdir(parents=True, exist_ok=True)
    plain = jax.tree.map(lambda x: np.asarray(x).tolist() if hasattr(x, "dtype") else x, result)
    (RUNS / f"{name}.json").write_text(json.dumps(plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=[*TASKS, "checks"])
    parser.add_argument("--data-dir", metavar="DIR", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--points", type=int, default=7)
    options = parser.parse_args()
    if options.what in TASKS:
        task = TASKS[options.what](options.data_dir)
        save(options.what, instabilities(task, options.seeds, options.points))
    else:
        for name, step in CHECKED:
            save(f"checks-{name}-{step}", checks(TASKS[name](options.data_dir), options.seeds, step))


if __name__ == "__main__":
    main()
