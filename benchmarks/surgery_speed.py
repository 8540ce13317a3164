"""How long do analysis and removal take, and how much of the MAC gain arrives as latency?

ResNet-18 on 112 x 112 and ViT-S/16 on 96 x 96 pixels lose half of everything but the outputs: channels of
the residual stages, hidden units, heads (of unchanged width), the ViT's residual stream. Torch-Pruning does
the same to the same networks, where it is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from models.resnet import ResNet
from models.vit import ViT
from surgery_measure import BATCHES, count, machine, shortest, show

import jaxprune as jp
from jaxprune.surgery import cost
from jaxprune.surgery.inference.kept import Keep

IMAGES = {"ResNet-18": 112, "ViT-S/16": 96}
HEADS = (
    "network",
    "library",
    "analysis, s",
    "choice and slices, s",
    "parameters, M",
    "MMACs",
    "MAC gain",
    *(f"batch {batch}, ms" for batch in BATCHES),
    *(f"gain at batch {batch} (of the MAC gain)" for batch in BATCHES),
)

Runner = Callable[[int], Callable[[], Any]]  # batch -> a forward pass


class Pruned(NamedTuple):
    """A network with half of its units, and the seconds that this took."""

    analysis: float
    removal: float
    parameters: int
    macs: float
    run: Runner
    model: Any  # a pair (function, parameters), or a PyTorch module


class Network(NamedTuple):
    """A network in one library; `prune` starts anew at each call."""

    library: str
    parameters: int
    macs: float
    run: Runner
    prune: Callable[[], Pruned]
    model: Any


def network(name: str, image: int) -> Network:
    """ "ResNet-18" or "ViT-S/16" in Flax."""
    model = ResNet() if name == "ResNet-18" else ViT()
    x = jnp.ones((1, image, image, 3))
    params: Any = jax.jit(model.init)(jax.random.key(0), x)
    fn = model.apply

    def run(fn: Callable, params: Any) -> Runner:
        def at(batch: int) -> Callable[[], Any]:
            compiled, images = jax.jit(fn), jnp.ones((batch, image, image, 3))
            return lambda: jax.block_until_ready(compiled(params, images))

        return at

    def macs(fn: Callable, params: Any) -> float:
        return cost.flops(jp.find_groups(fn, params, x).model.frame, Keep()) / 2

    def prune() -> Pruned:
        jax.clear_caches()  # as in a fresh process: nothing of the model is traced yet
        start = time.perf_counter()
        groups = jp.find_groups(fn, params, x)
        analysed = time.perf_counter()
        width = model.width // model.heads if isinstance(model, ViT) else 0
        within_heads = [group.name for group in groups if group.size == width]
        plan = jp.plan_removal(groups, params, 0.5, budget="units", exclude=within_heads)
        small, small_fn = jax.block_until_ready(plan.shrink(params)), plan.compact(fn)
        done = time.perf_counter()
        times = analysed - start, done - analysed
        found = count(small["params"]), macs(small_fn, small), run(small_fn, small)
        return Pruned(*times, *found, (small_fn, small))

    found = count(params["params"]), macs(fn, params), run(fn, params)
    return Network(f"jaxprune, JAX {jax.__version__}", *found, prune, (fn, params))


def networks(name: str, image: int) -> list[Network]:
    found = [network(name, image)]
    try:
        import surgery_torch
    except ImportError as error:
        print(f"without Torch-Pruning ({error})")
    else:
        found.append(surgery_torch.network(name, image))
    return found


def speed(markdown: Path | None, repeats: int = 5) -> None:
    rows = []
    for name, image in IMAGES.items():
        contenders = networks(name, image)
        turns = [[contender.prune() for contender in contenders] for _ in range(repeats)]
        pruned = dict(zip([c.library for c in contenders], zip(*turns, strict=True), strict=True))
        runs = {}
        for dense in contenders:
            for batch in BATCHES:
                runs[dense.library, "dense", batch] = dense.run(batch)
                runs[dense.library, "small", batch] = pruned[dense.library][-1].run(batch)
        times = shortest(runs)
        rows += [row(name, dense, pruned[dense.library], times) for dense in contenders]
    note = (
        f"Half of every group of units goes. Seconds: median of {repeats} turns, JAX's caches cleared before "
        "each. Latency: shortest of the forward passes in 4 turns of half a second. MACs: all convolutions and "
        f"matrix products, counted alike in both. {machine()}."
    )
    show("Time to remove, and latency gained", HEADS, rows, note, markdown)


def row(name: str, dense: Network, pruned: tuple[Pruned, ...], times: dict[Any, float]) -> tuple[str, ...]:
    small = pruned[-1]
    gain = dense.macs / small.macs
    cells = []
    shares = []
    for batch in BATCHES:
        old, new = (times[dense.library, which, batch] for which in ("dense", "small"))
        cells.append(f"{old * 1e3:.1f} → {new * 1e3:.1f}")
        shares.append(f"{old / new:.2f} ({old / new / gain:.0%})")
    return (
        name,
        dense.library,
        f"{statistics.median(p.analysis for p in pruned):.2f}",
        f"{statistics.median(p.removal for p in pruned):.2f}",
        f"{dense.parameters / 1e6:.1f} → {small.parameters / 1e6:.1f}",
        f"{dense.macs / 1e6:.0f} → {small.macs / 1e6:.0f}",
        f"{gain:.2f}",
        *cells,
        *shares,
    )
