"""What does iterative magnitude pruning cost beyond the training itself?

A whole experiment (`jax.jit(imp.run)`: rounds + 1 trainings, pruning and rewinding between them) against
a hand-written `lax.scan` over as many steps of the same training with the plain optimizer, and against a
PyTorch loop that multiplies a mask in after each step. Data have MNIST's shapes (784 pixels, batch 60, Adam).

The loops take turns, and a ratio is the median over the turns. CPU time is that of all threads of the
process, per replicate and step: on a shared machine wall time says little.

    python benchmarks/imp.py [--markdown FILE]
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState
from rich.console import Console
from rich.table import Table

import jaxprune as jp
from jaxprune.experiments.models import LeNet300100, SmallCNN

BATCH, LEARNING_RATE = 60, 1.2e-3


class Cost(NamedTuple):
    """Milliseconds a replicate-step."""

    cpu: float
    wall: float


class Row(NamedTuple):
    model: str
    replicates: int
    loop: str
    cost: Cost
    ratio: Cost | None  # to the scan with the plain optimizer, same model and replicates
    compilations: int | None


def data() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4096, 28, 28, 1)).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(rng.integers(0, 10, 4096, dtype=np.int32))


def pieces(model: nn.Module) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The train step and the batches, the same for both loops."""
    images, labels = data()

    def loss_fn(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits: Any = model.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def train_step(state: TrainState, batch: tuple[jax.Array, jax.Array]) -> tuple[TrainState, Any]:
        loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
        return state.apply_gradients(grads=grads), {"loss": loss}

    def batch_fn(key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = jax.random.randint(jax.random.fold_in(key, step), (BATCH,), 0, len(labels))
        return images[drawn], labels[drawn]

    return train_step, batch_fn


def states(model: nn.Module, tx: optax.GradientTransformation, replicates: int) -> tuple[jax.Array, Any]:
    keys = jax.random.split(jax.random.key(0), replicates)

    def fresh(key: jax.Array) -> TrainState:
        params = model.init(key, jnp.zeros((1, 28, 28, 1)))["params"]
        return TrainState.create(apply_fn=None, params=params, tx=tx)  # pyright: ignore[reportArgumentType]

    return keys, jax.jit(jax.vmap(fresh))(keys)


def whole_experiment(model: nn.Module, replicates: int, steps: int, rounds: int) -> Callable[[], Any]:
    train_step, batch_fn = pieces(model)
    imp = jp.imp(train_step, batch_fn, steps=steps, rounds=rounds, rate=0.2)
    keys, state = states(model, jp.masked(optax.adam(LEARNING_RATE)), replicates)
    return functools.partial(jax.jit(jax.vmap(imp.run)), keys, state)


def plain_scan(model: nn.Module, replicates: int, steps: int, rounds: int) -> Callable[[], Any]:
    train_step, batch_fn = pieces(model)
    keys, state = states(model, optax.adam(LEARNING_RATE), replicates)

    def train(key: jax.Array, state: TrainState) -> tuple[TrainState, Any]:
        def step(state: TrainState, t: jax.Array) -> tuple[TrainState, None]:
            return train_step(state, batch_fn(key, t))[0], None

        return jax.lax.scan(step, state, jnp.arange(steps * (rounds + 1)))

    return functools.partial(jax.jit(jax.vmap(train)), keys, state)


def torch_loop(steps: int) -> Callable[[], Any]:
    """LeNet-300-100 with a mask multiplied into each weight after each step, on one thread."""
    import torch

    torch.set_num_threads(1)
    images, labels = (torch.tensor(np.asarray(array)) for array in data())
    images, labels = images.reshape(len(images), -1), labels.long()
    net = torch.nn.Sequential(
        torch.nn.Linear(784, 300), torch.nn.ReLU(), torch.nn.Linear(300, 100), torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    )  # fmt: skip
    weights = [p for p in net.parameters() if p.ndim == 2]
    masks = [torch.ones_like(w) for w in weights]
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)

    def run() -> None:
        for _ in range(steps):
            drawn = torch.randint(len(labels), (BATCH,))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[drawn]), labels[drawn]).backward()
            optimizer.step()
            with torch.no_grad():
                for w, mask in zip(weights, masks, strict=True):
                    w.mul_(mask)

    return run


def measure(run: Callable[[], Any], replicate_steps: int) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(run())
    spent = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(*(1e3 * s / replicate_steps for s in spent))


def count_compilations(run: Callable[[], Any]) -> int:
    """Programs that XLA compiles in a first call."""
    seen: list[str] = []

    def listen(event: str, duration: float, **kwargs: Any) -> None:
        del duration, kwargs
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(run())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(seen)


def median(costs: list[Cost]) -> Cost:
    return Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))


def compare(name: str, model: nn.Module, replicates: int, steps: int, rounds: int, turns: int) -> list[Row]:
    loops = {"scan, plain optimizer": plain_scan, "jaxprune imp.run": whole_experiment}
    runs = {loop: make(model, replicates, steps, rounds) for loop, make in loops.items()}
    compiled = {loop: count_compilations(run) for loop, run in runs.items()}
    costs: dict[str, list[Cost]] = {loop: [] for loop in runs}
    for _ in range(turns):
        for loop, run in runs.items():
            costs[loop].append(measure(run, replicates * steps * (rounds + 1)))
    baseline = costs["scan, plain optimizer"]
    rows = []
    for loop, spent in costs.items():
        pairs = zip(spent, baseline, strict=True)
        ratio = median([Cost(a.cpu / b.cpu, a.wall / b.wall) for a, b in pairs])
        rows.append(Row(name, replicates, loop, median(spent), ratio, compiled[loop]))
    return rows


def all_rows(options: argparse.Namespace, console: Console) -> list[Row]:
    rows: list[Row] = []
    cases = {"mlp": (LeNet300100(), options.steps), "cnn": (SmallCNN(), max(options.steps // 10, 1))}
    for name in options.models:
        model, steps = cases[name]
        for replicates in options.replicates:
            with console.status(f"{name}, {replicates} replicates"):
                rows += compare(name, model, replicates, steps, options.rounds, options.turns)
    if "cnn" in options.models:
        with console.status("cnn, native convolution in a scan"):
            steps = max(options.steps // 100, 1)
            run = plain_scan(SmallCNN(conv=None), 1, steps, 0)
            compiled = count_compilations(run)
            cost = measure(run, steps)
            own = next((r.cost for r in rows if r.model == "cnn" and r.replicates == 1), None)
            ratio = Cost(cost.cpu / own.cpu, cost.wall / own.wall) if own else None
            rows.append(Row("cnn", 1, "scan, native convolution", cost, ratio, compiled))
    if importlib.util.find_spec("torch") and "mlp" in options.models:
        with console.status("mlp, PyTorch"):
            run = torch_loop(options.steps)
            run()
            cost = median([measure(run, options.steps) for _ in range(options.turns)])
            own = next((r.cost for r in rows if r.model == "mlp" and r.replicates == 1), None)
            ratio = Cost(cost.cpu / own.cpu, cost.wall / own.wall) if own else None
            rows.append(Row("mlp", 1, "PyTorch loop, 1 thread, masks", cost, ratio, None))
    return rows


HEADER = ("model", "replicates", "loop", "CPU ms", "CPU ratio", "wall ms", "wall ratio", "compilations")


def cells(row: Row) -> tuple[str, ...]:
    ratio = [f"{r:.3f}" for r in row.ratio] if row.ratio else ["–", "–"]
    compiled = "–" if row.compilations is None else str(row.compilations)
    cpu, wall = (f"{c:.3f}" for c in row.cost)
    return row.model, str(row.replicates), row.loop, cpu, ratio[0], wall, ratio[1], compiled


def machine() -> str:
    kind = jax.devices()[0].device_kind
    name = next(
        (line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")),
        platform.machine(),
    )
    return (
        f"{name}, {os.cpu_count()} cores, JAX {jax.__version__} on {kind}, Python {platform.python_version()}"
    )


def _cpu_info() -> list[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return file.read().splitlines()
    except OSError:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=300, help="a round of the MLP; a tenth of it for the CNN"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--replicates", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--models", nargs="+", choices=["mlp", "cnn"], default=["mlp", "cnn"])
    parser.add_argument("--markdown", metavar="FILE", help="also write the table there")
    options = parser.parse_args()
    console = Console()
    rows = all_rows(options, console)
    notes = (
        f"{options.steps} steps a round (CNN: {max(options.steps // 10, 1)}), {options.rounds} prunings, "
        f"median of {options.turns} turns; milliseconds a replicate-step; ratios to the scan with the plain "
        f"optimizer. {machine()}."
    )
    table = Table(title="The cost of iterative magnitude pruning", caption=notes)
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("model", "loop") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    if options.markdown:
        lines = [HEADER, tuple("---" for _ in HEADER), *(cells(row) for row in rows)]
        with open(options.markdown, "w") as file:
            file.write("".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{notes}\n")


if __name__ == "__main__":
    main()
