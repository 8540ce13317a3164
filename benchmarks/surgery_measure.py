"""What the surgery benchmarks measure alike: sizes, FLOPs, latency, and their tables."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

BATCHES = (1, 32)


def shortest(
    runs: Mapping[Any, Callable[[], Any]], rounds: int = 4, seconds: float = 0.5
) -> dict[Any, float]:
    """Shortest time of each run in seconds: they take turns, each for about `seconds` in each round.

    On a shared machine the shortest time is the one least disturbed.
    """
    best = dict.fromkeys(runs, float("inf"))
    for run in runs.values():
        run()  # compiles
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # another's threads may still be spinning
            spent = 0.0
            while spent < seconds:
                start = time.perf_counter()
                run()
                took = time.perf_counter() - start
                best[name] = min(best[name], took)
                spent += took
    return best


def jitted(fn: Callable, *args: Any) -> Callable[[], Any]:
    """A run of the compiled function, to be timed."""
    compiled = jax.jit(fn)
    return lambda: jax.block_until_ready(compiled(*args))


def count(tree: Any) -> int:
    """Entries of all arrays."""
    return sum(x.size for x in jax.tree.leaves(tree))


def xla_flops(fn: Callable, *args: Any) -> float:
    """FLOPs by XLA's own cost analysis of the compiled function."""
    analysis: Any = jax.jit(fn).lower(*args).compile().cost_analysis()
    return analysis["flops"]


def show(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], note: str, file: Path | None
) -> None:
    """Prints a table; adds it to a Markdown file on request."""
    console = Console(width=max(150, Console().width))
    table = Table(*heads, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(note, highlight=False)
    if file is not None:
        lines = [f"**{title}**", "", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        with file.open("a", encoding="utf-8") as out:
            out.write("\n".join([*lines, "", note, "", ""]))


def machine() -> str:
    return f"{platform.processor() or platform.machine()}, JAX {jax.__version__} on {jax.default_backend()}"
