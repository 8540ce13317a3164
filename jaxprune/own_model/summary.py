"""The dense and the small model side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxprune.tables import Row, folded, shape_text, table_text, times

_MOST = 12  # rows of the table of what was removed


def summary_text(found: Mapping[str, Any], folder: str) -> str:
    """The tables that `jaxprune shrink` and `export` print."""
    parts = []
    if found["command"] == "shrink":
        parts.append(_how(found))
        if found["dimensions"]:
            parts.append(_dimensions(found["dimensions"]))
    parts.append(_sizes(found))
    errors = ", ".join(f"{name} {e['relative']:.0e}" for name, e in found["errors"].items())
    parts.append(f"Largest difference of a file to the function, relative to the largest output: {errors}.")
    parts += [f"Left out: {name}, {why.rstrip('.')}." for name, why in found["left_out"].items()]
    parts.append(f"In {folder}: {', '.join([*found['files'], 'report.json', 'report.md', 'summary.json'])}")
    return "\n\n".join(parts)


def _how(found: Mapping[str, Any]) -> str:
    lines = [found["model"]]
    for name, share in found["asked"].items():
        if name in _WORDS:
            most = "" if name in ("units", "latency") else "at most "
            lines.append(f"Asked for {most}{share:g} of the dense model's {_WORDS[name]}.")
    if found["measured"]:
        lines.append(f"Planned by measurements: {found['measured']}.")
    layers = found["layers_removed"]
    if layers:
        more = f" and {len(layers) - 6} more" if len(layers) > 6 else ""
        lines.append(f"Left out {len(layers)} of the layers: {', '.join(layers[:6])}{more}.")
    how = [f"{what} ranked by {name}" for what, name in found["scores"].items()]
    how += ["kept weights refitted"] * found["compensated"]
    how += [f"distilled for {found['distilled']} steps"] * bool(found["distilled"])
    error = max(found["verified"].values(), default=0.0)
    told = ", ".join(how)
    return "\n".join([*lines, f"{told[:1].upper()}{told[1:]}; verified to {error:.0e}."])


_WORDS = {
    "params": "parameters",
    "flops": "FLOPs",
    "bytes": "bytes",
    "latency": "latency",
    "units": "units",
}


def _sizes(found: Mapping[str, Any]) -> str:
    both = found["command"] == "shrink"
    rows = []
    for title, key in (("parameters", "parameters"), ("bytes", "bytes"), ("FLOPs", "flops")):
        new, old = found[key]["exported"], found[key].get("dense")
        rows.append(
            (title, *([f"{old:,}"] if both else []), f"{new:,}", *([_share(new, old)] if both else []))
        )
    if found["parameters"]["nonzero"] < found["parameters"]["exported"] * 0.99 and not both:
        rows.append(("not zero", f"{found['parameters']['nonzero']:,}"))
    for entry in found["latency"]:
        new, old = entry["exported"], entry.get("dense")
        title = f"{entry['runtime']}, batch {entry['batch']}"
        rows.append(
            (title, *([_time(old)] if both else []), _time(new), *([_share(new, old)] if both else []))
        )
    scores = found["evaluation"]
    for name in scores["dense"]:
        cells = [_number(scores[which].get(name)) for which in ("dense", "small") if which in scores]
        last = scores.get("distilled")
        rows.append((name, *cells, *([""] if both else [])))
        if last is not None:
            rows.append((f"{name}, distilled", "", _number(last.get(name)), ""))
    columns = ("", "dense", "small", "small / dense") if both else ("", "exported")
    return table_text(columns, rows, columns[1:])


def _share(new: float | None, old: float | None) -> str:
    return "" if not old or new is None else f"{new / old:.1%}"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.3g} ms"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _dimensions(found: Mapping[str, Mapping[str, list[int]]]) -> str:
    """The sizes that change, those of repeated layers in one row; the first of them if there are many."""
    alike = folded(
        Row((name,), (shape_text(d["before"]), shape_text(d["after"]))) for name, d in found.items()
    )
    rows = [(times(row.paths[0], count), *row.cells) for row, count in alike]
    if len(rows) > _MOST:
        rows = [*rows[: _MOST - 1], (f"... and {len(rows) - _MOST + 1} more (in summary.json)", "", "")]
    return table_text(("units", "before", "after"), rows, ("before", "after"))
