"""What masks cost: a training step under `jp.masked` and `jp.gradual` over the same step without.

    python benchmarks/overhead.py [--repeats 7] [--steps 200] [--only NAME] [--markdown FILE]

Each model trains `steps` steps in each of the three ways, by turns, `repeats` times, with its parameters
and optimizer state donated to the jitted step as training loops do. The table shows CPU time a step (so
that another process on the machine counts little) and the median over the repeats of the ratio to the
dense step beside it. `gradual` follows a cubic schedule with an update every 100 steps, all inside the
measured steps.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

import jaxprune as jp
from jaxprune import matmul_conv
from jaxprune.experiments.models import LeNet300100


class CNN(nn.Module):
    """About a million parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (32, 64, 128):
            x = nn.relu(nn.Conv(features, (3, 3), conv_general_dilated=matmul_conv)(x))
            n, h, w, c = x.shape
            x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
        return nn.Dense(10)(nn.relu(nn.Dense(448)(x.reshape(n, -1))))


class Transformer(nn.Module):
    """Four blocks of width 128."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(256, 128)(tokens) + self.param("positions", nn.initializers.normal(0.02), (64, 128))
        for _ in range(4):
            x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
            x = x + nn.Dense(128)(nn.gelu(nn.Dense(512)(nn.LayerNorm()(x))))
        return nn.Dense(256)(nn.LayerNorm()(x))


def models() -> dict[str, tuple[nn.Module, jax.Array, jax.Array]]:
    key = jax.random.key(0)
    labels = jax.random.randint(key, (60,), 0, 10)
    tokens = jax.random.randint(key, (16, 64), 0, 256)
    return {
        "LeNet-300-100, batch 60": (LeNet300100(), jax.random.normal(key, (60, 784)), labels),
        "CNN, batch 60": (CNN(), jax.random.normal(key, (60, 32, 32, 3)), labels),
        "transformer, batch 16 x 64": (Transformer(), tokens, tokens),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows = []
    chosen = {name: each for name, each in models().items() if options.only in name}
    for name, (model, x, y) in chosen.items():
        params = model.init(jax.random.key(1), x)["params"]
        count = sum(w.size for w in jax.tree.leaves(params))
        masks = jp.make_masks(jp.scores.magnitude(params), 0.8)
        schedule = jp.schedules.cubic(0.9, begin=0, end=options.steps, every=100)
        ways = {
            "dense": optax.adam(1e-3),
            "masked": jp.masked(optax.adam(1e-3), masks),
            "gradual": jp.gradual(optax.adam(1e-3), schedule),
        }
        runs = {way: trainer(model, params, x, y, tx, options.steps) for way, tx in ways.items()}
        for run in runs.values():
            run()  # compiles
        times = [{way: run() for way, run in runs.items()} for _ in range(options.repeats)]
        rows.append(
            (
                name,
                f"{count:,}",
                f"{1e3 * statistics.median(t['dense'] for t in times):.2f} ms",
                *(
                    f"{statistics.median(t[way] / t['dense'] for t in times):.3f}"
                    for way in ("masked", "gradual")
                ),
            )
        )
    heads = ("model", "parameters", "dense step, CPU time", "masked / dense", "gradual / dense")
    show(heads, rows, options.markdown)


def trainer(
    model: nn.Module, params: Any, x: jax.Array, y: jax.Array, tx: optax.GradientTransformation, steps: int
) -> Callable[[], float]:
    """A function that trains anew and gives the CPU seconds of one step."""

    def loss_fn(params: Any) -> jax.Array:
        logits = model.apply({"params": params}, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    def run() -> float:
        now, state = jax.tree.map(jnp.copy, (params, tx.init(params)))
        jax.block_until_ready((now, state))
        start = time.process_time()
        for _ in range(steps):
            now, state = step(now, state)
        jax.block_until_ready((now, state))
        return (time.process_time() - start) / steps

    return run


def show(heads: tuple[str, ...], rows: list[tuple[str, ...]], markdown: Path | None) -> None:
    """Prints the table; writes it as Markdown with the machine on request."""
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    table = Table(*heads, title=machine)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if markdown:
        lines = [f"{machine}\n", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
