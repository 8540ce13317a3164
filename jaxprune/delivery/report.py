"""What was exported: numbers as JSON, and a page to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxprune.tables import Row, folded, shape_text, times

FORMAT = "jaxprune export 1"


@dataclass(frozen=True)
class Exported:
    """An exported model; printing it shows its report.

    Attributes:
      folder: where it is.
      report: the numbers of report.json.
    """

    folder: Path
    report: Mapping[str, Any]

    def __str__(self) -> str:
        return as_page(self.report)

    __repr__ = __str__


def as_page(report: Mapping[str, Any]) -> str:
    """The report in Markdown."""
    sections = [
        "# Exported model",
        f"{_versions(report)} `python load.py` runs the model on its example without jaxprune and without its code.",
        _inputs(report),
        "## Size\n\n" + _sizes(report),
        "## Errors\n\nLargest difference to the function, also at other sizes where sizes are symbols.\n\n"
        + _table(
            ("format", "absolute", "relative to the largest output", "allowed"),
            [
                (name, f"{e['absolute']:.1e}", f"{e['relative']:.1e}", f"{e['tolerance']:.1e}")
                for name, e in report["errors"].items()
            ],
        ),
    ]
    if report["latency"]:
        sections.append("## Latency\n\n" + _latency(report["latency"]))
    if report["removed"] or report["sparsity"] is not None:
        sections.append("## Removed\n\n" + _removed(report))
    return "\n\n".join(sections) + "\n"


def changed_shapes(plan: Any) -> dict[str, list[Any]]:
    """Path -> [shape, small shape, or None if the parameter is gone] of what a plan changes."""
    small = plan.small_shapes
    pairs = {path: (shape, small.get(path)) for path, shape in plan.shapes.items()}
    return {
        path: [list(map(int, old)), None if new is None else list(map(int, new))]
        for path, (old, new) in pairs.items()
        if new is None or tuple(old) != tuple(new)
    }


def _versions(report: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        + f"; {report['machine']}."
    )


def _inputs(report: Mapping[str, Any]) -> str:
    rows = [
        (side[:-1], f"`{x['name']}`", x["dtype"], "x".join(map(str, x["shape"])) or "scalar")
        for side in ("inputs", "outputs")
        for x in report[side]
    ]
    return _table(("", "name", "dtype", "shape"), rows)


def _sizes(report: Mapping[str, Any]) -> str:
    columns = ("dense", "exported")
    rows = []
    for title, name in (
        ("parameters", "parameters"),
        ("bytes of them", "bytes"),
        ("FLOPs at the example", "flops"),
    ):
        dense, small = (report[name].get(of) for of in columns)
        share = "" if not dense or small is None else f"{small / dense:.1%}"
        rows.append((title, "–" if dense is None else f"{dense:,}", f"{small:,}", share))
    rows.append(("that are not zero", "", f"{report['parameters']['nonzero']:,}", ""))
    files = [(f"`{name}`", f"{size:,}") for name, size in report["files"].items()]
    return _compared(("", "dense", "exported", "share"), rows) + "\n\n" + _table(("file", "bytes"), files)


def _latency(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in entries:
        dense, small = (entry.get(of) for of in ("dense", "exported"))
        times = ["–" if t is None else f"{t * 1e3:.3g} ms" for t in (dense, small)]
        share = "" if dense is None or not small else f"{dense / small:.2f}x"
        rows.append((entry["runtime"], str(entry["batch"]), *times, share))
    return _compared(("", "batch", "dense", "exported", "faster"), rows)


def _removed(report: Mapping[str, Any]) -> str:
    parts = []
    if report["sparsity"] is not None:
        parts.append(f"Masks prune {report['sparsity']:.2%} of the prunable weights: they are zero.")
    if report["removed"]:
        gone = sum(
            math.prod(old) - (math.prod(new) if new is not None else 0)
            for old, new in report["removed"].values()
        )
        rows = [
            (f"`{times(row.paths[0], count)}`", *row.cells)
            for row, count in folded(
                Row((path,), (shape_text(tuple(old)), "–" if new is None else shape_text(tuple(new))))
                for path, (old, new) in report["removed"].items()
            )
        ]
        parts.append(
            f"The plan removes {gone:,} parameters.\n\n" + _table(("parameter", "shape", "small shape"), rows)
        )
    return "\n\n".join(parts)


def _compared(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table, without what compares the model to a dense one where there is none."""
    place = heads.index("dense")
    if any(row[place] not in ("", "–") for row in rows):
        return _table(heads, rows)
    kept = [i for i in range(len(heads) - 1) if i != place]
    return _table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def as_json(report: Mapping[str, Any]) -> str:
    """The report as JSON."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"
