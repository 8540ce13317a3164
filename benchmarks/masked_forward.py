"""What `jp.masked_fn` costs: the forward pass, and the forward and backward pass, over those of the plain function.

    python benchmarks/masked_forward.py [--repeats 15] [--only NAME] [--markdown FILE]

Half of the units of all groups are pruned, by L2 norm; the masks are arguments of the compiled function. The runs
take turns. A cell is the median over the repeats of the ratio of CPU times (so that another process on the machine
counts little) to the plain function's run beside it. "zeroed" is the plain function on `apply_masks(params, masks)`,
which computes the same only where no reduction sees pruned units.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from models.resnet import ResNet
from models.vit import ViT
from surgery_measure import machine, show

import jaxprune as jp

HEADS = ("model", "pass", "plain, CPU time", "zeroed / plain", "masked_fn / plain")


class CNN(nn.Module):
    """Three convolutions and two dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (16, 32, 32):
            x = nn.relu(nn.Conv(features, (3, 3), (2, 2))(x))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1))))


def models() -> dict[str, tuple[nn.Module, jax.Array]]:
    images = jax.random.normal(jax.random.key(0), (32, 32, 32, 3))
    return {
        "ResNet-20, batch 32": (
            ResNet(widths=(16, 32, 64), blocks=3, classes=10, stem=(3, 1), pool=False),
            images,
        ),
        "ViT of 6 layers, width 192, batch 32 x 64": (ViT(192, 3, 6, 10, 4), images),
        "CNN, batch 32": (CNN(), images),
    }


def cpu_seconds(run: Callable[[], Any], at_least: float) -> float:
    """CPU seconds of one run, the mean over as many runs as take so long."""
    start = time.process_time()
    number = 0
    while (spent := time.process_time() - start) < at_least:
        jax.block_until_ready(run())
        number += 1
    return spent / number


def measure(model: nn.Module, x: jax.Array, repeats: int, seconds: float) -> list[tuple[str, ...]]:
    def fn(params: Any, x: jax.Array) -> Any:
        return model.apply(params, x)

    params = model.init(jax.random.key(1), x)
    groups = jp.find_groups(fn, params, x)
    masks = jp.make_masks(jp.scores.magnitude(params), 0.5, "local", jp.Coupled(groups))
    masks = jax.tree.map(jnp.asarray, masks)
    masked = jp.masked_fn(fn, groups)
    functions: dict[str, Callable[..., Any]] = {
        "plain": lambda params, masks, x: fn(params, x),
        "zeroed": lambda params, masks, x: fn(jp.apply_masks(params, masks), x),
        "masked": masked,
    }

    def with_gradient(f: Callable[..., Any]) -> Callable[..., Any]:
        return jax.value_and_grad(lambda params, masks, x: jnp.mean(jnp.square(f(params, masks, x))))

    rows = []
    for name, transform in (("forward", lambda f: f), ("forward and backward", with_gradient)):
        compiled = {way: jax.jit(transform(f)) for way, f in functions.items()}
        runs = {way: lambda f=f: f(params, masks, x) for way, f in compiled.items()}
        for run in runs.values():
            jax.block_until_ready(run())
        times = [{way: cpu_seconds(run, seconds) for way, run in runs.items()} for _ in range(repeats)]
        ratios = [
            f"{statistics.median(t[way] / t['plain'] for t in times):.3f}" for way in ("zeroed", "masked")
        ]
        rows.append((name, f"{1e3 * statistics.median(t['plain'] for t in times):.1f} ms", *ratios))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="CPU seconds of each run in a repeat")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows = []
    for name, (model, x) in models().items():
        if options.only in name:
            rows += [(name, *row) for row in measure(model, x, options.repeats, options.seconds)]
            print(*rows[-2:], sep="\n", flush=True)
    show("Masked functions", HEADS, rows, machine(), options.markdown)


if __name__ == "__main__":
    main()
