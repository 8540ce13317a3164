"""How much of the MAC gain of half the units arrives as latency, in JAX and in ONNX Runtime?

ResNet-18 and ViT-S/16 on 224 x 224 pixels lose half of every group of units, as in `surgery_speed.py`; the full and the
small network run in JAX (XLA), and as the `model.onnx` of `jp.export` in ONNX Runtime. Where torch, torch-pruning and
onnxscript are installed, so do their PyTorch twins after Torch-Pruning, eager and as the ONNX file of torch.

All run on the same cores, by turns. On one core the times are CPU seconds, which other work on the machine touches
least; on more they are seconds by the clock.

    python benchmarks/export_latency.py --models DIR                 # writes the ONNX files, which a later run reuses
    python benchmarks/export_latency.py --models DIR --repeat 5 --markdown benchmarks/export.md
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

BATCHES = (1, 32)
SIDE = 224
NETWORKS = ("ResNet-18", "ViT-S/16")
HEADS = (
    "network",
    "runtime",
    "batch",
    "MMACs",
    "MAC gain",
    "dense → small, ms",
    "gain",
    "gain / MAC gain",
    "time saved / MACs saved",
    "spread of the gain",
)


class Contender(NamedTuple):
    """A network in one library: MACs and a run for each batch, of the full network and of the small one."""

    network: str
    runtime: str
    macs: tuple[float, float]
    runs: dict[int, tuple[Callable[[], Any], Callable[[], Any]]]


def contenders(name: str, folder: Path, threads: int) -> list[Contender]:
    from surgery_speed import networks

    found = []
    for network in networks(name, SIDE):
        small = network.prune()
        macs = (network.macs, small.macs)
        title = network.library.split(",")
        runs = {batch: (network.run(batch), small.run(batch)) for batch in BATCHES}
        found.append(Contender(name, title[-1].strip(), macs, runs))
        is_jax = isinstance(network.model, tuple)
        write = write_jax if is_jax else write_torch
        files = []
        for which, model in (("dense", network.model), ("small", small.model)):
            path = folder / f"{name.split('/')[0]}-{title[0]}-{which}"
            file = path / "model.onnx"
            if not file.exists():
                write(path, model)
            files.append(file)
        of_onnx = {
            batch: (
                in_onnx(files[0], batch, is_jax, threads),
                in_onnx(files[1], batch, is_jax, threads),
            )
            for batch in BATCHES
        }
        found.append(
            Contender(name, f"ONNX Runtime, {'jp.export' if is_jax else 'torch.onnx'}", macs, of_onnx)
        )
    return found


def write_jax(folder: Path, model: Any) -> None:
    import jax.numpy as jnp

    import jaxprune as jp

    fn, params = model
    x = jnp.ones((2, SIDE, SIDE, 3))
    jp.export(folder, fn, params, x, formats=("onnx",), latency_batches=())


def write_torch(folder: Path, model: Any) -> None:
    import torch

    folder.mkdir(parents=True)
    x = torch.ones(2, 3, SIDE, SIDE)
    with torch.no_grad():
        program: Any = torch.onnx.export(
            model, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("b")},)
        )
    program.save(folder / "model.onnx")


def in_onnx(file: Path, batch: int, is_jax: bool, threads: int) -> Callable[[], Any]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    shape = (batch, SIDE, SIDE, 3) if is_jax else (batch, 3, SIDE, SIDE)
    feed = {session.get_inputs()[0].name: np.ones(shape, np.float32)}
    return lambda: session.run(None, feed)


def measure(all_runs: dict[Any, Callable[[], Any]], repeat: int, seconds: float, clock: Callable) -> dict:
    """Shortest time of each run in each turn; the full network and the small one follow each other."""
    times: dict[Any, list[float]] = {key: [] for key in all_runs}
    for run in all_runs.values():
        run()  # compiles
    for _ in range(repeat):
        for key, run in all_runs.items():
            best, spent = float("inf"), 0.0
            while spent < seconds:
                start = clock()
                run()
                took = clock() - start
                best, spent = min(best, took), spent + max(took, 1e-6)
            times[key].append(best)
    return times


def rows_of(found: list[Contender], repeat: int, seconds: float, clock: Callable) -> list[tuple[str, ...]]:
    keys = {
        (i, batch, which): contender.runs[batch][which]
        for batch in BATCHES
        for i, contender in enumerate(found)
        for which in (0, 1)
    }
    times = measure(keys, repeat, seconds, clock)
    return [
        row(contender, batch, times[i, batch, 0], times[i, batch, 1])
        for i, contender in enumerate(found)
        for batch in BATCHES
    ]


def row(contender: Contender, batch: int, dense: list[float], small: list[float]) -> tuple[str, ...]:
    macs, old, new = contender.macs, min(dense), min(small)
    gain, of_macs = old / new, macs[0] / macs[1]
    saved = (1 - new / old) / (1 - macs[1] / macs[0])
    each = [a / b for a, b in zip(dense, small, strict=True)]
    return (
        contender.network,
        contender.runtime,
        str(batch),
        f"{macs[0] / 1e6:.0f} → {macs[1] / 1e6:.0f}",
        f"{of_macs:.2f}",
        f"{old * 1e3:.1f} → {new * 1e3:.1f}",
        f"{gain:.2f}",
        f"{gain / of_macs:.0%}",
        f"{saved:.0%}",
        f"{min(each):.2f} to {max(each):.2f}, median {statistics.median(each):.2f}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True, help="folder of the ONNX files")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run in a turn, at least one run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--markdown", type=Path, help="add the table to this file")
    options = parser.parse_args()
    # Before any library makes its threads: XLA takes as many as there are cores to run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    from surgery_measure import machine, show

    try:
        import torch

        torch.set_num_threads(options.threads)
    except ImportError:
        pass
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = []
    for name in options.networks:
        found = contenders(name, options.models, options.threads)
        rows += rows_of(found, options.repeat, options.seconds, clock)
    note = (
        f"{SIDE} x {SIDE} pixels, {options.threads} core(s), shortest of {options.repeat} turns, "
        f"{'CPU time' if options.threads == 1 else 'wall time'}. {machine()}."
    )
    show("Latency of half the units", HEADS, rows, note, options.markdown)


if __name__ == "__main__":
    main()
