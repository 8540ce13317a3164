"""Half of the latency: what `plan_to` keeps where, beside one share for all groups.

python benchmarks/plan_to.py [--models ResNet-18 ViT-S/16 MiniLM] [--latency 0.5] [--runtime jax|onnx] [--data DATA]

ResNet-18 on 112 x 112 and ViT-S/16 on 96 x 96 pixels have random weights and inputs: only latencies, sizes and errors
of the outputs mean something. MiniLM is the pretrained encoder; its quality is Spearman's correlation on the dev set
of STS-B, as planned and after `compensate`. Each network is planned twice: with scope="local" (one share for all
groups) and "global". All that was planned is then timed once more, in turns with the dense network.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from surgery_measure import machine, show

import jaxprune as jp
from jaxprune.surgery import cost
from jaxprune.surgery.inference.kept import Keep
from jaxprune.targets.networks import Networks

HEADS = (
    "network",
    "plan",
    "latency",
    "again",
    "FLOPs",
    "parameters",
    "error",
    "quality",
    "compensated",
    "compiled",
    "CPU s",
)
BATCH = 8


class Task(NamedTuple):
    """A network to plan for; `quality` gives those of the small and of the compensated network."""

    fn: Callable
    params: Any
    inputs: tuple[Any, ...]
    exclude: list[str]
    score: Any
    dense_quality: float | None
    quality: Callable[[Any], tuple[float, float]] | None


def images(name: str) -> Task:
    from models.resnet import ResNet
    from models.vit import ViT

    model, side = (ResNet(), 112) if name == "ResNet-18" else (ViT(), 96)
    x = jax.random.normal(jax.random.key(1), (BATCH, side, side, 3))
    params: Any = jax.jit(model.init)(jax.random.key(0), x)
    groups = jp.find_groups(model.apply, params, x)
    # Heads keep their width: dividing by its root is written into the function.
    widths = [group.name for group in groups if name != "ResNet-18" and group.size == 64]
    return Task(model.apply, params, (x,), widths, None, None, None)


def minilm(folder: Path) -> Task:
    from models import minilm as model
    from models import stsb
    from one_shot_structured import padding_mask

    params, using = model.load(), model.tokenizer()
    dev = stsb.read(folder / "stsb", "dev")
    calibration = stsb.calibration(folder / "stsb", using, 512, 32)
    groups = jp.find_groups(model.embed, params, *calibration[0])
    consumers = jp.prunable(params, include=r"layers/.*/(out|down)/kernel")
    stats = jp.calibrate(
        model.embed, params, calibration, where=consumers, moments="full", row_weights=padding_mask
    )
    score = jp.surgery.obs_scores(groups, params, stats)

    def measured(fn: Callable, params: Any) -> float:
        embed = jax.jit(fn)
        return stsb.spearman(lambda ids, mask: embed(params, ids, mask), using, dev)

    def quality(plan: Any) -> tuple[float, float]:
        refitted = jp.compensate(model.embed, params, plan, calibration, row_weights=padding_mask)
        small_fn = plan.compact(model.embed)
        return measured(small_fn, plan.shrink(params)), measured(small_fn, plan.shrink(refitted))

    fixed = [group.name for group in groups if group.size not in (model.HEADS, model.HIDDEN)]
    dense = measured(model.embed, params)
    return Task(model.embed, params, calibration[0], fixed, score, dense, quality)


def share(plan: Any) -> float:
    whole, small = (sum(map(math.prod, shapes.values())) for shapes in (plan.shapes, plan.small_shapes))
    return small / whole


def flops(fn: Callable, params: Any, inputs: tuple[Any, ...]) -> int:
    return cost.flops(jp.find_groups(fn, params, *inputs).model.frame, Keep())


def rows(name: str, task: Task, latency: float, runtime: Any) -> list[tuple[str, ...]]:
    fn, params, inputs = task.fn, task.params, task.inputs
    groups = jp.find_groups(fn, params, *inputs)
    plans, spent = {}, {}
    for scope in ("local", "global"):
        start = time.process_time()
        plans[scope] = jp.plan_to(
            groups,
            fn,
            params,
            inputs,
            latency=latency,
            batch=BATCH,
            runtime=runtime,
            scope=scope,
            score=task.score,
            exclude=task.exclude,
        )
        spent[scope] = time.process_time() - start
        print(plans[scope].measured, flush=True)
    networks = Networks((fn, params), inputs, runtime, BATCH)
    small = {scope: (plan.compact(fn), plan.shrink(params)) for scope, plan in plans.items()}
    again = networks.measure(small)
    whole = flops(fn, params, inputs)
    found = []
    if task.dense_quality is not None:
        found.append((name, "dense", "1", "1", "1", "1", "0", f"{task.dense_quality:.4f}", "", "", ""))
    for scope, plan in plans.items():
        quality = ("", "") if task.quality is None else tuple(f"{q:.4f}" for q in task.quality(plan))
        found.append(
            (
                name,
                "one share" if scope == "local" else "`plan_to`",
                f"{plan.measured.reached:.3f}",
                f"{again[scope].latency:.3f}",
                f"{flops(*small[scope], inputs) / whole:.3f}",
                f"{share(plan):.3f}",
                f"{again[scope].error:.3f}",
                *quality,
                str(plan.measured.compilations),
                f"{spent[scope]:.0f}",
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["ResNet-18", "ViT-S/16", "MiniLM"])
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--runtime", choices=("jax", "onnx"), default="jax")
    parser.add_argument("--data", type=Path, default=os.environ.get("JAXPRUNE_DATA"), help="data folder")
    parser.add_argument("--markdown", type=Path, help="file that the table is appended to")
    options = parser.parse_args()
    table = []
    for name in options.models:
        task = minilm(Path(options.data)) if name == "MiniLM" else images(name)
        table += rows(name, task, options.latency, options.runtime)
    title = f"{options.latency:g} of the latency at batch {BATCH}, {options.runtime}"
    show(title, HEADS, table, machine(), options.markdown)


if __name__ == "__main__":
    main()
