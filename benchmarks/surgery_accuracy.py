"""Does a residual CNN keep its accuracy when half or more of its channels go?

Dense training, then 50 % and 70 % of the channels of every group (residual streams included) by L2 norm: in
one shot, the same after fine-tuning, and in three rounds with a third of that fine-tuning after each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from models.resnet import ResNet
from surgery_measure import BATCHES, count, jitted, machine, shortest, show, xla_flops

import jaxprune as jp
from jaxprune.experiments import data

SHARES, ROUNDS = (0.5, 0.7), 3
HEADS = (
    "channels",
    "accuracy",
    "parameters",
    "XLA MFLOPs",
    *(f"batch {batch}, ms" for batch in BATCHES),
    *(f"gain at batch {batch}" for batch in BATCHES),
)


class Setting(NamedTuple):
    model: dict[str, Any]
    batch: int
    steps: int
    tuning: int


SETTINGS = {
    "digits": Setting({"widths": (32, 64), "stem": (3, 1)}, batch=64, steps=300, tuning=150),
    "mnist": Setting({"widths": (32, 64), "stem": (3, 2)}, batch=128, steps=429, tuning=213),
}


class Variant(NamedTuple):
    name: str
    fn: Callable
    variables: Any
    accuracy: float


def accuracy(name: data.Name, folder: str | None, quick: bool, markdown: Path | None) -> None:
    sets, setting = data.load(name, folder), SETTINGS[name]
    if quick:
        setting = setting._replace(steps=20, tuning=6)
    shape = {"classes": 10, "pool": False, **setting.model}
    testing, training = ResNet(**shape), ResNet(train=True, **shape)
    example = jnp.asarray(sets.train.images[:1])

    def train_fn(variables: Any, x: jax.Array) -> Any:
        return training.apply(variables, x, mutable=["batch_stats"])

    def tune(fn: Callable, variables: Any, steps: int, rate: float = 1e-3) -> Any:
        return train(fn, variables, sets.train, setting.batch, steps, rate)

    variants: list[Variant] = []

    def add(name: str, fn: Callable, variables: Any) -> None:
        variants.append(Variant(name, fn, variables, share_right(fn, variables, sets.test)))
        print(f"{name:<32} {variants[-1].accuracy:.2%}", flush=True)

    dense: Any = testing.init(jax.random.key(0), example)
    dense = tune(train_fn, dense, setting.steps, 3e-3)
    add("all", testing.apply, dense)
    groups = jp.find_groups(testing.apply, dense, example)
    for share in SHARES:
        plan = jp.plan_removal(groups, dense, share, budget="units")
        small, small_fn = plan.shrink(dense), plan.compact(testing.apply)
        add(f"{share:.0%} removed in one shot", small_fn, small)
        add(f"{share:.0%} and fine-tuned", small_fn, tune(with_state(plan, train_fn), small, setting.tuning))
        small, plan = dense, jp.plan_removal(groups, dense, 0.0)
        for _ in range(ROUNDS):
            stage = jp.find_groups(plan.compact(testing.apply), small, example)
            step = jp.plan_removal(stage, small, 1 - (1 - share) ** (1 / ROUNDS), budget="units")
            small, plan = step.shrink(small), plan.then(step)
            small = tune(with_state(plan, train_fn), small, setting.tuning // ROUNDS)
        add(f"{share:.0%} in {ROUNDS} rounds, fine-tuned", plan.compact(testing.apply), small)
    note = (
        f"{setting.steps} training steps of {setting.batch} images, {setting.tuning} of fine-tuning (in rounds: "
        f"in all). {len(sets.test.labels):,} test images. Latency: shortest, all by turns. {machine()}."
    )
    title = f"Residual CNN with BatchNorm on {'MNIST' if name == 'mnist' else 'digits'}"
    show(title, HEADS, rows(variants, sets.test.images), note, markdown)


def with_state(plan: jp.Plan, train_fn: Callable) -> Callable:
    """The small training function: statistics come in with the parameters and go out."""

    def state(variables: Any, outputs: Any) -> Any:
        return variables["batch_stats"], outputs[1]["batch_stats"]

    return jp.Plan(plan.shapes, plan.kept, state).compact(train_fn)


def train(fn: Callable, variables: Any, split: data.Split, batch: int, steps: int, rate: float) -> Any:
    tx = optax.adamw(optax.cosine_decay_schedule(rate, steps))
    images, labels = map(jnp.asarray, split)

    def loss_fn(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        logits, new = fn({"params": params, "batch_stats": stats}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

    @jax.jit
    def step(params: Any, stats: Any, opt_state: Any, key: jax.Array) -> tuple[Any, Any, Any]:
        drawn = jax.random.randint(key, (batch,), 0, len(labels))
        grads, stats = jax.grad(loss_fn, has_aux=True)(params, stats, images[drawn], labels[drawn])
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), stats, opt_state

    params, stats = variables["params"], variables["batch_stats"]
    opt_state = tx.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, stats, opt_state = step(params, stats, opt_state, key)
    return {"params": params, "batch_stats": stats}


def share_right(fn: Callable, variables: Any, split: data.Split, batch: int = 1000) -> float:
    compiled = jax.jit(fn)
    classes = [
        np.asarray(compiled(variables, split.images[at : at + batch]).argmax(-1))
        for at in range(0, len(split.labels), batch)
    ]
    return float(np.mean(np.concatenate(classes) == split.labels))


def rows(variants: list[Variant], images: np.ndarray) -> list[tuple[str, ...]]:
    times = shortest(
        {
            (v.name, batch): jitted(v.fn, v.variables, jnp.asarray(images[:batch]))
            for v in variants
            for batch in BATCHES
        },
        seconds=0.25,
    )
    out = []
    for v in variants:
        new = [times[v.name, batch] for batch in BATCHES]
        old = [times[variants[0].name, batch] for batch in BATCHES]
        flops = xla_flops(v.fn, v.variables, jnp.asarray(images[:1]))
        out.append(
            (
                v.name,
                f"{v.accuracy:.2%}",
                f"{count(v.variables['params']):,}",
                f"{flops / 1e6:.2f}",
                *(f"{t * 1e3:.2f}" for t in new),
                *(f"{a / b:.2f}" for a, b in zip(old, new, strict=True)),
            )
        )
    return out
