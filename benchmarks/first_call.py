"""What does a first call cost, compilation included?

    python benchmarks/first_call.py [--rows PART ...] [--columns PART ...] [--limit 300] [--parts] [--markdown FILE]

The shapes of ResNet-50 and of GPT-2 small, and 400 small leaves: masks from scores, eagerly, and a jitted
update step under each wrapper (`optax.adamw`, state donated, gradients given). Two networks that train: all
of `imp.run` as one program. Every cell is a fresh process on one CPU device without a compilation cache, so
that nothing was compiled before; inputs are ready, and for masks the scores too. A step or a program is
traced, lowered and compiled, not run.

CPU seconds are those of all threads of the process, since compilation uses several; the ratio is to the
dense step, or the scan of dense steps, of the same column. A cell that passes the limit is ended there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from first_call_cells import rows as all_rows
from first_call_shapes import NETWORKS, SHAPES
from rich.console import Console
from rich.table import Table

SECOND = {f"make_masks, Unstructured, {scope}": f"second call, {scope}, ms" for scope in ("global", "local")}
DENSE = ("dense step", "scan of dense steps")


def measure(row: str, column: str, limit: float) -> dict[str, Any] | None:
    """The cost of a cell as its process tells it; None where it passed the limit.

    Raises:
      RuntimeError: the process failed otherwise.
    """
    cells = Path(__file__).with_name("first_call_cells.py")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    command = [sys.executable, str(cells), row, column, str(limit)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGXCPU:
        return None
    if done.returncode:
        raise RuntimeError(f"{row!r} on {column!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def cell(cost: dict[str, Any] | None, dense: dict[str, Any] | None, limit: float, parts: bool) -> str:
    """`seconds (x dense)`, with the seconds of tracing, lowering and compiling on request."""
    if cost is None:
        return f"> {limit:g}"
    text = f"{cost['first']:.2f}"
    if parts and cost["parts"]:
        text += " = " + " + ".join(f"{part:.2f}" for part in cost["parts"])
    return f"{text} ({cost['first'] / dense['first']:.1f})" if dense else text


def chosen(names: list[str], parts: list[str] | None) -> list[str]:
    """The names that hold one of the parts; all without parts."""
    return [name for name in names if parts is None or any(part in name for part in parts)]


def fits(row: str, column: str) -> bool:
    return (column in NETWORKS) == ("imp.run" in row or "scan" in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", nargs="+", metavar="PART", help="rows whose name holds one of these")
    parser.add_argument("--columns", nargs="+", metavar="PART")
    parser.add_argument("--limit", type=float, default=300, help="CPU seconds of a cell")
    parser.add_argument("--parts", action="store_true", help="also tracing + lowering + compiling")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table there")
    options = parser.parse_args()
    columns = chosen([*SHAPES, *NETWORKS], options.columns)
    rows = chosen(list(all_rows()), options.rows)
    console = Console()
    heads, lines = ["first call, CPU s (x dense)", *columns], []
    costs: dict[tuple[str, str], dict[str, Any] | None] = {}
    for row in [*(row for row in DENSE if row in rows), *(row for row in rows if row not in DENSE)]:
        for column in columns:
            if fits(row, column):
                with console.status(f"{row}, {column}"):
                    costs[row, column] = measure(row, column, options.limit)
                console.print(f"{row}, {column}: {cell(costs[row, column], None, options.limit, True)} s")
    for row in rows:
        of_row = {column: costs[row, column] for column in columns if (row, column) in costs}
        if not of_row:
            continue
        dense = {c: next((costs[d, c] for d in DENSE if costs.get((d, c))), None) for c in columns}
        shown = {c: cell(cost, dense[c], options.limit, options.parts) for c, cost in of_row.items()}
        lines.append([row, *(shown.get(column, "") for column in columns)])
        if row in SECOND:
            second = {c: f"{1e3 * cost['second']:.0f}" for c, cost in of_row.items() if cost}
            lines.append([SECOND[row], *(second.get(column, "") for column in columns)])
    show(heads, lines, options.markdown, console)


def show(heads: list[str], lines: list[list[str]], markdown: Path | None, console: Console) -> None:
    """Prints the table; writes it as Markdown with the machine on request."""
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, JAX {version('jax')} on the CPU, "
        f"Python {platform.python_version()}."
    )
    table = Table(*heads, title="The cost of a first call", caption=machine)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    if markdown:
        text = [heads, ["---"] * len(heads), *lines]
        markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in text) + f"\n{machine}\n")


if __name__ == "__main__":
    main()
