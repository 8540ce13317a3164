"""The results of `jaxprune claims` as sections: a claim, its tables, and at which sparsities it shows."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table

from jaxprune.experiments.compare.results import DENSE, key_of, steps_of
from jaxprune.experiments.results import KINDS, TICKET, TITLES, Record, mean_and_spread, percent

# Accuracy counts as that of the dense network from half a percent below it on.
_WITHIN = 0.5
TICKETS = "tickets"


class Table(NamedTuple):
    """title: above it; header, rows: the texts of the cells."""

    title: str
    header: list[str]
    rows: list[list[str]]


class Section(NamedTuple):
    """One point: its claim, the setting, tables, and sentences about where the claim shows."""

    name: str
    title: str
    claim: str
    setting: str
    tables: list[Table]
    found: list[str]


def sections(results: dict[str, Any]) -> list[Section]:
    """The sections of all points, in their order."""
    times = results.get("times", {})
    return [
        _tickets(part) if name == TICKETS else _comparison(name, part, times.get(name, {}))
        for name, part in results["parts"].items()
    ]


def shown(results: dict[str, Any]) -> rich.console.Group:
    """The sections for a terminal."""
    parts: list[Any] = []
    for section in sections(results):
        parts += [f"[bold]{section.title}[/]", rich.markup.escape(f"{section.claim} {section.setting}")]
        for table in section.tables:
            made = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            for i, column in enumerate(table.header):
                made.add_column(column, justify="right" if i else "left")
            for row in table.rows:
                made.add_row(*(cell.replace(" ± ", "±").replace(" ", "\xa0") for cell in row))
            parts += [rich.markup.escape(table.title), made]
        parts += [*(f"- {rich.markup.escape(line)}" for line in section.found), ""]
    return rich.console.Group(*parts)


def markdown(results: dict[str, Any]) -> str:
    """The sections as a Markdown page."""
    settings = results["settings"]
    lines = [
        "# What pruning articles claim, and what shows",
        "",
        f"`jaxprune claims` on {settings['data']}, {settings['seeds']} seeds. Both sides of a claim train for the same "
        "number of steps, from the same weights and on the same batches of each seed, with Adam at "
        f"{settings['learning_rate']:g} and batches of {settings['batch_size']}. Accuracies are of the test images "
        "after the last step, in %, mean ± standard deviation over the seeds. A difference counts as shown where it "
        "has the same sign in every seed and its mean is more than two standard errors.",
    ]
    for section in sections(results):
        lines += ["", f"## {section.title}", "", f"Claim: {section.claim} {section.setting}"]
        for table in section.tables:
            lines += ["", table.title, "", _row(table.header), "|---" * len(table.header) + "|"]
            lines += [_row(row) for row in table.rows]
        lines += ["", *(f"- {line}" for line in section.found), "", f"![{section.title}]({section.name}.png)"]
    return "\n".join(lines) + "\n"


def difference(one: Record, other: Record) -> tuple[float, float, int]:
    """Mean and standard deviation over seeds of the difference of accuracies in percent; its sign, 0 if not shown."""
    values = percent(one["test_accuracy"]) - percent(other["test_accuracy"])
    mean, number = float(values.mean()), len(values)
    spread = float(values.std(ddof=1)) if number > 1 else math.nan
    agree = bool(np.all(np.sign(values) == np.sign(mean))) and mean != 0
    is_shown = number > 1 and agree and abs(mean) > 2 * spread / math.sqrt(number)
    return mean, spread, int(np.sign(mean)) if is_shown else 0


def steps_to_dense(r: Record) -> list[int | None]:
    """For each seed the steps of the last training after which accuracy is that of the dense network; None: never."""
    last = r["trainings"]["steps"][-1]
    before = sum(r["trainings"]["steps"]) - last
    found = []
    for level, curve in zip(
        percent_of(r["trainings"]["test_accuracy"])[:, 0],
        percent_of(r["curve"]["test_accuracy"]),
        strict=True,
    ):
        reached = [
            step - before
            for step, accuracy in zip(r["curve"]["steps"], curve, strict=True)
            if step > before and accuracy >= level - _WITHIN
        ]
        found.append(reached[0] if reached else None)
    return found


def percent_of(rows: list[list[float | None]]) -> np.ndarray:
    """Accuracies (seeds, points) in percent."""
    return np.asarray([percent(row) for row in rows])


def _comparison(name: str, part: dict[str, Any], times: dict[str, Any]) -> Section:
    records = part["records"]
    by = {(r["method"], r["sparsity"]): r for r in records}
    names = list(dict.fromkeys(r["method"] for r in records if r["method"] != DENSE))
    sparsities = list(dict.fromkeys(r["sparsity"] for r in records if r["method"] != DENSE))
    columns = [_percent(s) for s in sparsities]
    accuracies = [
        [at, *(_accuracy(by[name, s]) for name in names)] for at, s in zip(columns, sparsities, strict=True)
    ]
    tables = [Table("Test accuracy in %:", ["sparsity", *names], accuracies)]
    pairs = [
        (one, other, [difference(by[one, s], by[other, s]) for s in sparsities])
        for one, other in part["pairs"]
    ]
    differences = [[at, *(_difference(of[i]) for *_, of in pairs)] for i, at in enumerate(columns)]
    header = ["sparsity", *(f"{one} − {other}" for one, other, _ in pairs)]
    tables.append(Table("Differences in points (* shown):", header, differences))
    found = [_sentence(one, other, columns, [sign for *_, sign in of]) for one, other, of in pairs]
    if name == "initialization":
        title = (
            f"Steps of the last training until within {_WITHIN} points of the dense network, mean of the seeds that "
            "reach it:"
        )
        steps = [
            [at, *(_steps(by[name, s]) for name in names)] for at, s in zip(columns, sparsities, strict=True)
        ]
        tables.append(Table(title, ["sparsity", *names], steps))
    if name == "structure":
        tables.append(_costs(names, sparsities, times))
    trainings = " or ".join(dict.fromkeys(steps_of(by[name, sparsities[0]]) for name in names))
    setting = (
        f"{part['model']}, {part['steps']} steps in all ({trainings}). The dense network, trained for as many: "
        f"{_accuracy(by[DENSE, 0.0])}."
    )
    return Section(name, part["title"], part["claim"], setting, tables, found)


def _costs(names: list[str], sparsities: list[float], times: dict[str, Any]) -> Table:
    sizes = list(times[key_of(names[0], sparsities[0])]["latency"])
    header = ["method", "pruned", "file", "FLOPs", *(f"batch {size}" for size in sizes)]
    rows = []
    for name in names:
        for s in sparsities:
            of = times[key_of(name, s)]
            shares = of["bytes"], of["flops"], *(of["latency"][size] for size in sizes)
            rows.append([name, _percent(s), *(f"{share:.2f}" for share in shares)])
    return Table(
        "Compressed file, FLOPs and latencies as shares of the dense network's, first seed:", header, rows
    )


def _tickets(part: dict[str, Any]) -> Section:
    by = {(r["kind"], r["round"]): r for r in part["records"]}
    rounds = sorted({r["round"] for r in part["records"]})
    columns = [f"{100 * (1 - float(np.mean(by[TICKET, r]['kept_fraction']))):.1f} %" for r in rounds]
    rows = []
    for r in rounds:
        told = (_accuracy(by[kind, r]) if (kind, r) in by else "–" for kind in KINDS)
        rows.append([columns[r], *told])
    found = []
    for kind in KINDS[1:]:
        signs = [difference(by[TICKET, r], by[kind, r])[-1] for r in rounds[1:]]
        found.append(_sentence(TITLES[TICKET], TITLES[kind], columns[1:], signs))
    table = Table(
        "Test accuracy in % at the step of minimum validation loss:",
        ["sparsity", *(TITLES[k] for k in KINDS)],
        rows,
    )
    claim = (
        "Tickets keep the accuracy of the dense network; the same masks with newly drawn weights, and masks of as many "
        "weights at random places, lose it."
    )
    setting = f"LeNet-300-100, {part['steps']} steps a round."
    return Section(TICKETS, "Lottery tickets and their controls", claim, setting, [table], found)


def _sentence(one: str, other: str, columns: list[str], signs: list[int]) -> str:
    """Where the difference shows, and where not."""
    told = []
    verbs = (
        (1, f"more accurate than {other}"),
        (-1, f"less accurate than {other}"),
        (0, "no difference shows"),
    )
    for sign, verb in verbs:
        if at := [column for column, s in zip(columns, signs, strict=True) if s == sign]:
            told.append(f"{verb} at {', '.join(at)}")
    return f"{one}: {'; '.join(told)}."


def _steps(r: Record) -> str:
    reached = [steps for steps in steps_to_dense(r) if steps is not None]
    seeds = len(r["test_accuracy"])
    if not reached:
        return "never"
    part = "" if len(reached) == seeds else f" ({len(reached)} of {seeds})"
    return f"{np.mean(reached):.0f}{part}"


def _difference(of: tuple[float, float, int]) -> str:
    mean, spread, sign = of
    told = f"{mean:+.2f}" if math.isnan(spread) else f"{mean:+.2f} ± {spread:.2f}"
    return told + (" *" if sign else "")


def _accuracy(r: Record) -> str:
    return mean_and_spread(r["test_accuracy"])


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:g} %"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
