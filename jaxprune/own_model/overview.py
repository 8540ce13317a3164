"""What of a model can be removed, on one screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jaxprune.own_model.checking import Checked
from jaxprune.own_model.sizes import Sizes, short, sizes
from jaxprune.surgery import Branches, Groups, find_branches, find_groups
from jaxprune.surgery.cost import flops, parameters
from jaxprune.surgery.inference.kept import Keep
from jaxprune.surgery.layers.branches import Branch
from jaxprune.tables import Row, folded_places, listed, shape_text, table_text, times

_WIDTH = 100
_GAP = 3
_LAST = 16  # with less place the last column is left out
# A screen has about 40 lines: three tables with a head of two lines each and a line between them.
_GROUPS, _BRANCHES, _FROZEN, _FIXED = 10, 8, 5, 2


def overview(of: Checked, name: str) -> dict[str, Any]:
    """All that `overview_text` shows, without folding, as what JSON can hold."""
    model = of.model
    groups = find_groups(model.fn, model.params, *model.inputs)
    branches = find_branches(model.fn, model.params, *model.inputs)
    found = sizes(model.fn, model.params, model.inputs)
    return {
        "command": "inspect",
        "model": name,
        **found._asdict(),
        "inputs": [_input(x) for x in jax.tree.leaves(model.inputs)],
        "batches": len(of.batches),
        "loss": model.loss is not None,
        "evaluate": model.evaluate is not None,
        "groups": _groups(groups),
        "frozen": [{"because": f.reason, "axes": list(map(str, f.members))} for f in groups.frozen],
        "branches": [_branch(branch) for branch in branches],
        "fixed": [{"source": f.source, "because": f.reason} for f in branches.fixed],
        "removable": _removable(groups, branches, found),
    }


def overview_text(found: dict[str, Any], everything: bool) -> str:
    """The overview as tables of at most about 40 lines in all, or of all there is."""
    most = (lambda rows, _: rows) if everything else _shortened
    parts = [_head(found)]
    if found["groups"]:
        rows = most(_group_rows(found["groups"], everything), _GROUPS)
        columns = ("units", "number", "params/unit", "FLOPs/unit", "also on axes")
        parts.append(_table(columns, rows, columns[1:4], everything))
    else:
        parts.append("No units can be removed.")
    if found["branches"]:
        rows = most(_branch_rows(found["branches"]), _BRANCHES)
        columns = ("layer", "parameters", "FLOPs", "part of")
        parts.append(_table(columns, rows, columns[1:3], everything))
    else:
        parts.append("No layers can be left out.")
    if found["frozen"]:
        rows = most(_frozen_rows(found["frozen"], everything), _FROZEN)
        parts.append(_table(("frozen because", "axes"), rows, (), everything))
    if found["fixed"]:
        rows = [(f["source"], f["because"]) for f in found["fixed"]]
        parts.append(_table(("additions that stay", "because"), most(rows, _FIXED), (), everything))
    layouts = " x [" in parts[1] or "] x " in parts[1]
    parts.append(
        "Names in these tables are patterns for --only, --exclude and --alike of `jaxprune shrink`."
        + (" In an\naxis [12] x 32 the 12 are the units, each of 32 entries." if layouts else "")
    )
    return "\n\n".join(parts)


def _head(found: dict[str, Any]) -> str:
    each = [f"{x['dtype']} {shape_text(x['shape'])}" for x in found["inputs"]]
    inputs = ", ".join(each[:4]) + (f" and {len(each) - 4} more" if len(each) > 4 else "")
    has = [f"{found['batches']} calibration batches" if found["batches"] else "no calibration batches"]
    has += [f"{'a' if name == 'loss' else 'an'} {word}" for name, word in _FUNCTIONS if found[name]]
    lacks = [word for name, word in _FUNCTIONS if not found[name]]
    told = ", ".join(has) + (f"; no {' and no '.join(lacks)}" if lacks else "")
    most = found["removable"]
    return (
        f"{found['model']}\n{short(found['parameters'])} parameters, {short(found['bytes'])}B, "
        f"{short(found['flops'])} FLOPs at {inputs or 'no inputs'}\n"
        f"With {told}.\n"
        f"Units hold at most {most['units']:.1%} of the parameters, layers {most['layers']:.1%}."
    )


_FUNCTIONS = (("loss", "loss"), ("evaluate", "evaluation"))


def _group_rows(groups: list[dict[str, Any]], everything: bool) -> list[tuple[str, ...]]:
    """A row for each group, those of repeated layers folded."""
    rows = [
        Row((g["name"], *g["axes"]), (_units(g), short(g["parameters"]), short(g["flops"]))) for g in groups
    ]
    out = []
    for row, places in folded_places(rows):
        others = [axis for axis in row.paths[1:] if axis != row.paths[0]]
        out.append((times(row.paths[0], len(places)), *row.cells, _axes(others, everything)))
    return out


def _units(group: dict[str, Any]) -> str:
    return f"{group['units']} (top {group['chosen']})" if group["chosen"] else str(group["units"])


def _branch_rows(branches: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each branch, those of repeated layers folded."""
    rows = [Row((b["name"], b["inside"]), (short(b["parameters"]), short(b["flops"]))) for b in branches]
    return [
        (times(row.paths[0], len(places)), *row.cells, row.paths[1]) for row, places in folded_places(rows)
    ]


def _groups(groups: Groups) -> list[dict[str, Any]]:
    frame, whole = groups.model.frame, Keep({})
    params, products = parameters(groups.model, whole), flops(frame, whole)
    found = []
    for group in groups:
        mask = [True] * group.size
        mask[0] = False
        less = Keep({group.atom: _array(mask)})
        found.append(
            {
                "name": group.name,
                "units": group.size,
                "chosen": group.chosen,
                "parameters": params - parameters(groups.model, less),
                "flops": products - flops(frame, less),
                "axes": list(map(str, group.members)),
                "source": group.source,
            }
        )
    return found


def _branch(branch: Branch) -> dict[str, Any]:
    return {
        "name": branch.name,
        "kind": branch.kind,
        "parameters": branch.size,
        "flops": branch.flops,
        "inside": branch.inside,
        "source": branch.source,
    }


def _removable(groups: Groups, branches: Branches, whole: Sizes) -> dict[str, float]:
    """The largest shares of the parameters that units, and layers, can lose."""
    masks = {}
    for group in groups:
        masks[group.atom] = _array([i < group.minimum for i in range(group.size)])
    left = parameters(groups.model, Keep(masks))
    layers = branches.removed([branch.name for branch in branches.at("parts")]).size if len(branches) else 0
    total = max(whole.parameters, 1)
    return {"units": (whole.parameters - left) / total, "layers": layers / total}


def _array(mask: Iterable[bool]) -> Any:
    return np.array(list(mask), bool)


def _input(x: Any) -> dict[str, Any]:
    return {"shape": list(np.shape(x)), "dtype": str(getattr(x, "dtype", None) or np.result_type(x))}


def _axes(axes: Sequence[str], everything: bool) -> str:
    return listed(axes, len(axes) if everything else 3)


def _frozen_rows(frozen: list[dict[str, Any]], everything: bool) -> list[tuple[str, ...]]:
    """A row for each reason; unless everything is wanted, one for all source lines with that reason."""
    by_reason: dict[str, list[str]] = {}
    for of in frozen:
        reason = of["because"] if everything else of["because"].partition(" at ")[0]
        by_reason.setdefault(reason, []).extend(of["axes"])
    return [(reason, _axes(axes, everything)) for reason, axes in by_reason.items()]


def _shortened(rows: list[tuple[str, ...]], most: int) -> list[tuple[str, ...]]:
    """The first rows, and one that says how many more there are."""
    if len(rows) <= most:
        return rows
    more = (f"... and {len(rows) - most + 1} more rows (--all)", *[""] * (len(rows[0]) - 1))
    return [*rows[: most - 1], more]


def _table(
    columns: Sequence[str], rows: list[tuple[str, ...]], numbers: Sequence[str], everything: bool
) -> str:
    """A table in which each row is one line, unless everything is wanted."""
    if not everything:
        columns, rows = _one_line(columns, rows)
    return table_text(columns, rows, numbers)


def _one_line(
    columns: Sequence[str], rows: list[tuple[str, ...]]
) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """The table with the cells of its last column cut, or without it, so that no row is wider than a line."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    left = _WIDTH - _GAP * (len(columns) - 1) - sum(widths[:-1])
    if left >= min(widths[-1], _LAST):
        return columns, [(*row[:-1], _cut(row[-1], left)) for row in rows]
    left = _WIDTH - _GAP * (len(columns) - 2) - sum(widths[1:-1])
    return columns[:-1], [(_cut(row[0], left), *row[1:-1]) for row in rows]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
