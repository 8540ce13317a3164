"""Channels in one shot, by gradual masks or in rounds of real removal: which is best at which number of steps?

    python benchmarks/shrink_rounds.py [--data mnist --data-dir DIR] [--quick] [--markdown FILE]

A residual CNN with BatchNorm is trained densely. Then a share of the channels of every group, residual streams
included, is removed by L2 norm, and the network is fine-tuned with a given number of steps in all:

- one shot: all at once, then every step at the final size;
- masks: `jp.gradual` with `jp.Coupled(groups)` and `jp.masked_fn` over the first half of the steps (cubic), at full
  size to the end, then one `shrink`;
- rounds: `jp.shrink_in_rounds`, the same share in four prunings within the first half of the steps.

All have the same sizes in the end, and AdamW with one cosine over all steps. With
`--results FILE` each training is written as a line of JSON, and those that the file has are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
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
from jaxprune import checkpoint
from jaxprune.experiments import data

DENSE_STEPS, DENSE_RATE, RATE = 429, 3e-3, 1e-3
ROUNDS, UPDATES = 4, 40
METHODS = ("one shot", "masks", "rounds")


class Task(NamedTuple):
    """The data on the device, and the two forms of the model."""

    images: jax.Array
    labels: jax.Array
    test: data.Split
    init: Callable
    fn: Callable
    train_fn: Callable
    batch: int

    def batch_of(self, key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = jax.random.randint(jax.random.fold_in(key, step), (self.batch,), 0, len(self.labels))
        return self.images[drawn], self.labels[drawn]


class State(NamedTuple):
    params: Any
    batch_stats: Any
    opt_state: Any


def variables(state: State) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def task_of(name: data.Name, folder: str | None, batch: int) -> Task:
    sets = data.load(name, folder)
    shape: dict[str, Any] = {"classes": 10, "pool": False, "widths": (32, 64)}
    shape["stem"] = (3, 2) if name == "mnist" else (3, 1)
    testing, training = ResNet(**shape), ResNet(train=True, **shape)

    def train_fn(variables: Any, x: jax.Array) -> Any:
        return training.apply(variables, x, mutable=["batch_stats"])

    images, labels = map(jnp.asarray, sets.train)

    def init(key: jax.Array) -> Any:
        return testing.init(key, images[:1])

    return Task(images, labels, sets.test, init, testing.apply, train_fn, batch)


def optimizer(steps: int, rate: float) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(rate, steps))


def trained(
    task: Task, tx: optax.GradientTransformation, apply: Callable, state: State, key: jax.Array, steps: int
) -> State:
    """`apply(state, params, x)` gives logits and updates."""

    @jax.jit
    def step(state: State, number: jax.Array) -> State:
        return gradient_step(tx, apply, state, task.batch_of(key, number))

    for number in range(steps):
        state = step(state, jnp.int32(number))
    return jax.block_until_ready(state)


def gradient_step(tx: Any, apply: Callable, state: State, batch: tuple[jax.Array, jax.Array]) -> State:
    x, y = batch

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, new = apply(state, params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new["batch_stats"]

    grads, stats = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), stats, opt_state)


def plain(fn: Callable) -> Callable:
    return lambda state, params, x: fn({"params": params, "batch_stats": state.batch_stats}, x)


def statistics(variables: Any, outputs: Any) -> Any:
    return variables["batch_stats"], outputs[1]["batch_stats"]


def dense_of(task: Task, seed: int, steps: int) -> dict[str, Any]:
    init_key, key = jax.random.split(jax.random.key(seed))
    new: Any = jax.jit(task.init)(init_key)
    tx = optimizer(steps, DENSE_RATE)
    state = State(new["params"], new["batch_stats"], tx.init(new["params"]))
    return variables(trained(task, tx, plain(task.train_fn), state, key, steps))


def squares(params: Any) -> Any:
    """Scores of weights; their sum over a unit is its squared L2 norm."""
    return jax.tree.map(jnp.square, params)


def norms(groups: Any, tree: dict[str, Any]) -> Any:
    """The same for surgery: statistics do not count, as in masks."""
    del groups
    return {
        "params": squares(tree["params"]),
        "batch_stats": jax.tree.map(lambda _: None, tree["batch_stats"]),
    }


Small = tuple[jp.Plan, dict[str, Any]]


def one_shot(task: Task, dense: dict[str, Any], share: float, key: jax.Array, steps: int) -> Small:
    groups = jp.find_groups(task.train_fn, dense, task.images[:2], state=statistics)
    plan = jp.plan_removal(groups, dense, share, budget="units", score=norms(groups, dense))
    small, tx = plan.shrink(dense), optimizer(steps, RATE)
    state = State(small["params"], small["batch_stats"], tx.init(small["params"]))
    return plan, variables(trained(task, tx, plain(plan.compact(task.train_fn)), state, key, steps))


def masks(task: Task, dense: dict[str, Any], share: float, key: jax.Array, steps: int) -> Small:
    groups = jp.find_groups(task.train_fn, dense, task.images[:2], state=statistics)
    schedule = jp.schedules.cubic(share, begin=0, end=steps // 2, every=max(1, steps // UPDATES))
    tx = jp.gradual(
        optimizer(steps, RATE),
        schedule,
        scope="local",
        structure=jp.Coupled(groups),
        score=squares,
    )
    masked = jp.masked_fn(task.train_fn, groups)

    def apply(state: State, params: Any, x: jax.Array) -> Any:
        tree = {"params": params, "batch_stats": state.batch_stats}
        return masked(tree, jp.get_masks(state.opt_state), x)

    state = State(dense["params"], dense["batch_stats"], tx.init(dense["params"]))
    state = trained(task, tx, apply, state, key, steps)
    plan = jp.plan_from_masks(groups, jp.get_masks(state.opt_state))
    return plan, plan.shrink(variables(state))


def accuracy(fn: Callable, tree: Any, split: data.Split, batch: int = 1000) -> float:
    compiled = jax.jit(fn)
    right = [
        np.asarray(compiled(tree, split.images[at : at + batch]).argmax(-1)) == split.labels[at : at + batch]
        for at in range(0, len(split.labels), batch)
    ]
    return float(np.mean(np.concatenate(right)))


def rounds(task: Task, dense: dict[str, Any], share: float, key: jax.Array, steps: int) -> Small:
    tx = optimizer(steps, RATE)

    def make_train_step(compact: Callable) -> Callable:
        apply = plain(compact(task.train_fn))
        return lambda state, batch: (gradient_step(tx, apply, state, batch), {})

    each = steps // (2 * ROUNDS)
    state, plan, _ = jp.shrink_in_rounds(
        task.fn,
        State(dense["params"], dense["batch_stats"], tx.init(dense["params"])),
        task.images[:2],
        key=key,
        make_train_step=make_train_step,
        batch_fn=task.batch_of,
        steps=[0, *[each] * (ROUNDS - 1), steps - each * (ROUNDS - 1)],  # the last round has the most
        sparsities=[1 - (1 - share) ** (r / ROUNDS) for r in range(1, ROUNDS)] + [share],
        planner=jp.RemoveUnits(norms, budget="units"),
        variables=variables,
    )
    return plan, variables(state)


RUN: dict[str, Callable[[Task, dict[str, Any], float, jax.Array, int], Small]] = {
    "one shot": one_shot,
    "masks": masks,
    "rounds": rounds,
}


class Result(NamedTuple):
    seed: int
    share: float
    method: str
    steps: int
    accuracy: float
    parameters: int


def measured(
    task: Task,
    seeds: int,
    shares: list[float],
    budgets: list[int],
    methods: list[str],
    dense_steps: int,
    results: Path | None,
) -> list[Result]:
    """All results; those in the file come from there, new ones are added to it."""
    found = (
        [Result(*json.loads(line)) for line in results.read_text().splitlines()]
        if results and results.exists()
        else []
    )
    done = {row[:4] for row in found}

    def add(row: Result) -> None:
        found.append(row)
        print(
            f"seed {row.seed}  {row.share:4.0%}  {row.method:<9} {row.steps:>5} steps  {row.accuracy:.2%}",
            flush=True,
        )
        if results:
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")

    for steps in budgets:
        for seed in range(seeds):
            wanted = [
                (share, method)
                for method in methods
                for share in shares
                if (seed, share, method, steps) not in done
            ]
            if not wanted:
                continue
            dense = dense_from(task, seed, dense_steps, results)
            if (seed, 0.0, "dense", 0) not in {row[:4] for row in found}:
                add(
                    Result(seed, 0.0, "dense", 0, accuracy(task.fn, dense, task.test), count(dense["params"]))
                )
            for share, method in wanted:
                plan, small = RUN[method](task, dense, share, jax.random.key(100 + seed), steps)
                small_fn = jp.Plan(plan.shapes, plan.kept).compact(task.fn)
                add(
                    Result(
                        seed,
                        share,
                        method,
                        steps,
                        accuracy(small_fn, small, task.test),
                        count(small["params"]),
                    )
                )
    return found


def dense_from(task: Task, seed: int, steps: int, results: Path | None) -> dict[str, Any]:
    """The dense network of a seed; kept beside the results."""
    if results is None:
        return dense_of(task, seed, steps)
    path = results.with_suffix("") / f"dense_{seed}"
    like = jax.eval_shape(task.init, jax.random.key(0))
    if not path.exists():
        checkpoint.save(path, dense_of(task, seed, steps))
    return checkpoint.restore(path, dict(like))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits")
    parser.add_argument(
        "--data-dir", help="folder with MNIST's four files; default: mnist in JAXPRUNE_DATA's"
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--steps", type=int, nargs="+", default=[213, 858], help="of fine-tuning, in all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--results", type=Path, help="file of results to continue")
    parser.add_argument("--markdown", type=Path, help="add the tables to this file")
    options = parser.parse_args()
    if options.data_dir is None and "JAXPRUNE_DATA" in os.environ:
        options.data_dir = os.path.join(os.environ["JAXPRUNE_DATA"], "mnist")
    dense_steps = DENSE_STEPS
    if options.quick:
        dense_steps, options.steps, options.seeds = 20, [8, 16], 1
    task = task_of(options.data, options.data_dir, options.batch)
    found = measured(
        task, options.seeds, options.shares, options.steps, options.methods, dense_steps, options.results
    )
    tables(task, found, options, dense_steps)


def tables(task: Task, found: list[Result], options: Any, dense_steps: int) -> None:
    def cell(**of: Any) -> str:
        values = [100 * row.accuracy for row in found if all(getattr(row, k) == v for k, v in of.items())]
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
        return f"{np.mean(values):.2f}{spread} ({len(values)})" if values else ""

    name = "MNIST" if options.data == "mnist" else "digits"
    rows = [
        (f"{share:.0%}", method, *(cell(share=share, method=method, steps=steps) for steps in options.steps))
        for share in options.shares
        for method in options.methods
    ]
    note = (
        f"Test accuracy in %, mean ± standard deviation (seeds). Dense, {dense_steps} steps of {options.batch} images: "
        f"{cell(method='dense')}. {machine()}."
    )
    heads = ("channels removed", "how", *(f"{steps} steps" for steps in options.steps))
    show(
        f"Residual CNN with BatchNorm on {name}: removed at once, by masks or in rounds",
        heads,
        rows,
        note,
        options.markdown,
    )
    show(
        "Latency", LATENCY, latency(task, options), f"Shortest, all by turns. {machine()}.", options.markdown
    )


LATENCY = (
    "channels removed",
    "parameters",
    "XLA MFLOPs",
    *(f"batch {n}, ms" for n in BATCHES),
    *(f"gain at batch {n}" for n in BATCHES),
)


def latency(task: Task, options: Any) -> list[tuple[str, ...]]:
    """Of the sizes, which all methods share."""
    dense: Any = jax.jit(task.init)(jax.random.key(0))
    groups = jp.find_groups(task.fn, dense, task.images[:1])
    models = {"none": (task.fn, dense)}
    for share in options.shares:
        plan = jp.plan_removal(groups, dense, share, budget="units")
        models[f"{share:.0%}"] = plan.compact(task.fn), plan.shrink(dense)
    times = shortest(
        {
            (name, n): jitted(fn, tree, task.images[:n])
            for name, (fn, tree) in models.items()
            for n in BATCHES
        },
        seconds=0.25,
    )
    return [
        (
            name,
            f"{count(tree['params']):,}",
            f"{xla_flops(fn, tree, task.images[:1]) / 1e6:.2f}",
            *(f"{times[name, n] * 1e3:.2f}" for n in BATCHES),
            *(f"{times['none', n] / times[name, n]:.2f}" for n in BATCHES),
        )
        for name, (fn, tree) in models.items()
    ]


if __name__ == "__main__":
    main()
