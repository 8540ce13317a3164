"""How long does it take to choose the smallest of n scores, and how much memory?

    python benchmarks/selection.py --sizes 1e6 1e7 1e8 --markdown table.md

All contenders see the same scores within one run, in turn; the table has medians, and ratios to `select`. The
others get one flat array and find the threshold only; `select` gets several leaves and makes exact masks: of
arrays at hand by NumPy, and compiled as inside a training step.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxprune.selection import nm_keep, select

SLOW_SECONDS = 5.0  # a contender whose first run takes longer is not run again
WIDTH = 1000


def leaves_of(flat: np.ndarray) -> list[jax.Array]:
    """The scores as four matrices of different heights and a vector."""
    rows = flat.size // WIDTH
    heights = [rows // 2, rows // 4, rows // 8, rows // 8 - 1]
    cuts = np.cumsum([height * WIDTH for height in heights])
    parts = np.split(flat, cuts)
    shapes = [(height, WIDTH) for height in heights] + [(-1,)]
    return [jnp.asarray(part.reshape(shape)) for part, shape in zip(parts, shapes, strict=True)]


def distributions(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(n, dtype=np.float32)
    rounded = (np.abs(normal).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return {
        "magnitude of normal weights": np.abs(normal),
        "signed": normal,
        "uniform": rng.random(n, dtype=np.float32),
        "25 decades": (10.0 ** rng.uniform(-20, 5, n)).astype(np.float32),
        "rounded to bfloat16 (ties)": rounded,
        "90 % zeros": np.where(rng.random(n, dtype=np.float32) < 0.9, np.float32(0), np.abs(normal)),
        "constant": np.full(n, 0.3, np.float32),
    }


def torch_contenders(flat: np.ndarray, k: int, sparsity: float) -> dict[str, Callable[[], object]]:
    try:
        import torch
        from torch.nn.utils import prune
    except ImportError:
        return {}
    tensor = torch.from_numpy(flat)
    parts = torch.split(tensor, [flat.size // 2, flat.size // 4, flat.size - flat.size // 2 - flat.size // 4])

    def global_unstructured():
        modules = [torch.nn.Module() for _ in parts]
        for module, part in zip(modules, parts, strict=True):
            module.weight = torch.nn.Parameter(part)
        pairs = [(module, "weight") for module in modules]
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=sparsity)

    return {
        "torch.kthvalue": lambda: torch.kthvalue(tensor, k),
        "torch global_unstructured": global_unstructured,
    }


def contenders(flat: np.ndarray, k: int, sparsity: float) -> dict[str, Callable[[], object]]:
    leaves, whole = leaves_of(flat), jnp.asarray(flat)
    sort = jax.jit(jnp.sort)
    top_k = jax.jit(lambda scores: jax.lax.top_k(scores, flat.size - k))
    compiled = jax.jit(select)
    return {
        "jaxprune select": lambda: jax.block_until_ready(select(leaves, k)),
        "jaxprune select, compiled": lambda: jax.block_until_ready(compiled(leaves, jnp.int32(k))),
        "numpy.partition": lambda: np.partition(flat, k),
        "jnp.sort": lambda: jax.block_until_ready(sort(whole)),
        "jax.lax.top_k": lambda: jax.block_until_ready(top_k(whole)),
    } | torch_contenders(flat, k, sparsity)


def measure(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, called in turn so that a busy moment hits all of them."""
    seconds: dict[str, list[float]] = {}
    for name, function in functions.items():
        start = time.perf_counter()
        function()
        first = time.perf_counter() - start
        seconds[name] = [first] if first > SLOW_SECONDS and name != "jaxprune select" else []
    for _ in range(repeats):
        for name, function in functions.items():
            if len(seconds[name]) == 1 and seconds[name][0] > SLOW_SECONDS:
                continue
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def peak_memory(action: Callable[[], object]) -> int | None:
    """Bytes by which the process's resident memory peaks above what it holds now (Linux only)."""

    def field(name: str) -> int:
        status = pathlib.Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(name))

    with contextlib.suppress(OSError, StopIteration, AttributeError):
        # Memory that was freed but not given back would hide what the action takes.
        ctypes.CDLL(None).malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = field("VmRSS")
        action()
        return field("VmHWM") - before
    return None


def speed_rows(sizes: list[int], sparsity: float, repeats: int) -> list[list[str]]:
    rows = []
    for n in sizes:
        flat = np.abs(np.random.default_rng(0).standard_normal(n, dtype=np.float32))
        seconds = measure(contenders(flat, round(sparsity * n), sparsity), repeats)
        ours = seconds["jaxprune select"]
        for name, time_taken in seconds.items():
            rows.append([f"{n:.0e}", name, f"{1e3 * time_taken:.1f}", f"{time_taken / ours:.2f}"])
    return rows


def distribution_rows(n: int, sparsity: float, repeats: int) -> list[list[str]]:
    rows, k, compiled = [], round(sparsity * n), jax.jit(select)
    for name, flat in distributions(n).items():
        leaves = leaves_of(flat)
        functions = {
            "at hand": lambda leaves=leaves: jax.block_until_ready(select(leaves, k)),
            "compiled": lambda leaves=leaves: jax.block_until_ready(compiled(leaves, jnp.int32(k))),
            "numpy.partition": lambda flat=flat: np.partition(flat, k),
        }
        ours, jitted, theirs = (1e3 * seconds for seconds in measure(functions, repeats).values())
        rows.append([name, f"{ours:.1f}", f"{jitted:.1f}", f"{theirs:.1f}", f"{theirs / ours:.2f}"])
    return rows


def memory_rows(sizes: list[int], dtype, sparsity: float) -> list[list[str]]:
    rows = []
    for n in sizes:
        generate = jax.jit(
            lambda key, n=n: jnp.abs(jax.random.normal(key, (n // 10 // WIDTH, WIDTH))).astype(dtype)
        )
        leaves = [generate(key) for key in jax.random.split(jax.random.key(0), 10)]
        total = sum(leaf.size for leaf in leaves)
        weights = sum(leaf.nbytes for leaf in leaves)
        k = round(sparsity * total)

        for way, choose, number in (("at hand", select, k), ("compiled", jax.jit(select), jnp.uint32(k))):

            def run(choose=choose, leaves=leaves, number=number):
                return jax.block_until_ready(choose(leaves, number))

            held = run()  # kept, so that the masks of the run that is watched take memory of their own
            exact = sum(int(keep.size) - int(jnp.sum(keep)) for keep in held) == k
            peak = peak_memory(run)
            del held
            seconds = measure({"jaxprune select": run}, 3)["jaxprune select"]
            # The masks take one byte a weight.
            extra = "?" if peak is None else f"{(peak - total) / weights:.3f}"
            name = f"{jnp.dtype(dtype).name}, {way}"
            rows.append([f"{total:.0e}", name, f"{1e3 * seconds:.0f}", extra, str(exact)])
    return rows


def nm_rows(repeats: int) -> list[list[str]]:
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((4096, 2560), dtype=np.float32))

    def by_sort(scores, n, m):
        groups = scores.reshape(-1, m, scores.shape[1])
        return (jnp.argsort(jnp.argsort(groups, axis=1), axis=1) >= m - n).reshape(scores.shape)

    rows = []
    for n, m in ((1, 2), (2, 4), (4, 8)):
        ours = jax.jit(lambda scores, n=n, m=m: nm_keep(scores, n, m, 0))
        theirs = jax.jit(lambda scores, n=n, m=m: by_sort(scores, n, m))
        functions = {
            "jaxprune nm_keep": lambda ours=ours: ours(scores).block_until_ready(),
            "argsort": lambda theirs=theirs: theirs(scores).block_until_ready(),
        }
        fast, slow = measure(functions, repeats).values()
        rows.append([f"{n}:{m}", f"{1e3 * fast:.1f}", f"{1e3 * slow:.1f}", f"{slow / fast:.0f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=float, nargs="*", default=[1e6, 1e7], help="numbers of float32 scores"
    )
    parser.add_argument(
        "--bfloat16-sizes", type=float, nargs="*", default=[], help="such as 1e9: select alone"
    )
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--markdown", type=pathlib.Path, help="also write the tables to this file")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes]
    wide = [int(size) for size in options.bfloat16_sizes]
    middle = min(sizes, key=lambda size: abs(size - 10**7)) if sizes else 10**6

    memory = memory_rows(sizes, jnp.float32, options.sparsity) + memory_rows(
        wide, jnp.bfloat16, options.sparsity
    )
    tables = [
        (
            "Extra memory beyond the masks, over the bytes of the scores",
            ["scores", "type", "ms", "extra memory", "exact"],
            memory,
        ),
        (
            f"Selection at sparsity {options.sparsity}, on {jax.devices()[0].device_kind}",
            ["scores", "contender", "ms", "over select"],
            speed_rows(sizes, options.sparsity, options.repeats),
        ),
        (
            f"By distribution, {middle:.0e} scores",
            ["scores", "select, ms", "compiled, ms", "numpy.partition, ms", "partition over select"],
            distribution_rows(middle, options.sparsity, options.repeats),
        ),
        (
            "N:M masks, 1e7 scores",
            ["pattern", "nm_keep, ms", "argsort, ms", "argsort over nm_keep"],
            nm_rows(min(options.repeats, 5)),
        ),
    ]
    console = Console()
    for title, columns, rows in tables:
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if options.markdown:
        options.markdown.write_text("\n\n".join(as_markdown(*table) for table in tables) + "\n")


def as_markdown(title: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = [f"**{title}**", "", f"| {' | '.join(columns)} |", "|" + "---:|" * len(columns)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


if __name__ == "__main__":
    main()
