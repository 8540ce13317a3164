"""Rows of the experiment as readable numbers: records, table, CSV."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.box
import rich.table

if TYPE_CHECKING:
    from jaxprune.round_history import Round

TICKET, REINITIALIZED, RANDOM = KINDS = ("ticket", "reinitialized", "random")
TITLES = {TICKET: "ticket", REINITIALIZED: "reinitialised", RANDOM: "random masks"}
Record = dict[str, Any]


def record(kind: str, round: int, row: Round, curve_steps: tuple[int, ...]) -> Record:
    """One training of all seeds, in plain numbers; lists have one entry for each seed.

    The early stop is the evaluation of minimum validation loss. `test_accuracy` is the accuracy at the early stop,
    `final_test_accuracy` that after the last step. Accuracies are fractions.
    """
    curve = {name: np.asarray(values) for name, values in row.curve.items()}
    loss = np.where(np.isnan(curve["validation_loss"]), np.inf, curve["validation_loss"])
    at = loss.argmin(axis=1)

    def there(name: str) -> list[Any]:
        return plain(np.take_along_axis(curve[name], at[:, None], axis=1)[:, 0])

    return {
        "kind": kind,
        "round": round,
        "kept": plain(np.asarray(row.kept)),
        "kept_fraction": plain(1 - np.asarray(row.sparsity, np.float64)),
        "early_stop_step": plain(np.asarray(curve_steps)[at]),
        "validation_loss": there("validation_loss"),
        "validation_accuracy": there("validation_accuracy"),
        "test_accuracy": there("test_accuracy"),
        "final_test_accuracy": plain(np.asarray(row.evaluation["test_accuracy"])),
        "curve": {name: plain(values) for name, values in curve.items()},
    }


def write_csv(path: Path, records: list[Record], of: tuple[str, ...] = ("kind", "round")) -> None:
    """One line for each seed of each record; `of` names the fields that all seeds of a record share."""
    names = [name for name, value in records[0].items() if isinstance(value, list)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*of, "seed", *names])
        for r in records:
            for seed in range(len(r["kept"])):
                writer.writerow([*(r[name] for name in of), seed, *(r[name][seed] for name in names)])


def table(results: dict[str, Any]) -> rich.table.Table:
    """Kept fraction, accuracy and early-stop step of ticket and controls, one row for each round."""
    settings, steps = results["settings"], results["curve_steps"]
    by = {(r["kind"], r["round"]): r for r in results["records"]}
    seeds = settings["seeds"]
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    still = any(r["early_stop_step"].count(steps[-1]) for r in results["records"])
    shown = rich.table.Table(
        title=f"Tickets: {settings['model']} on {settings['data']}, {settings['steps']} steps a round",
        caption=(
            "Test accuracy in % at the early stop, the step of minimum validation loss "
            f"(evaluated every {steps[0]} steps); {spread}."
            + (f" Runs that stop at {steps[-1]} were still improving." if still else "")
        ),
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("round", justify="right", no_wrap=True)
    shown.add_column("kept %", justify="right", no_wrap=True)
    for kind in KINDS:
        shown.add_column(TITLES[kind], justify="right", no_wrap=True)
        shown.add_column("stop", justify="right", no_wrap=True, style="dim")
    for round in range(settings["rounds"] + 1):
        row = [by[kind, round] if round or kind == TICKET else None for kind in KINDS]
        kept = 100 * float(np.mean(by[TICKET, round]["kept_fraction"]))
        means = [_mean(r and r["test_accuracy"]) for r in row]
        best = max(means)
        accuracies = [
            f"[bold]{_accuracy(r)}[/]" if mean == best and r else _accuracy(r)
            for r, mean in zip(row, means, strict=True)
        ]
        stops = [f"{np.mean(r['early_stop_step']):.0f}" if r else "–" for r in row]
        shown.add_row(str(round), f"{kept:.2f}", *itertools.chain(*zip(accuracies, stops, strict=True)))
    return shown


def percent(values: list[float | None]) -> np.ndarray:
    """Accuracies in percent; NaN for a training without one."""
    return 100 * np.asarray([math.nan if v is None else v for v in values])


def _accuracy(r: Record | None) -> str:
    if r is None:
        return "–"
    return mean_and_spread(r["test_accuracy"])


def mean_and_spread(accuracies: list[float | None]) -> str:
    """Mean and standard deviation (ddof 1; none for one seed) in percent, as `97.96 ± 0.32`."""
    values = percent(accuracies)
    spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread}"


def _mean(values: list[float | None] | None) -> float:
    mean = float(percent(values).mean()) if values else -math.inf
    return -math.inf if math.isnan(mean) else mean


def plain(array: np.ndarray) -> Any:
    """Nested lists of Python numbers; None for numbers that JSON can't write."""
    if array.dtype.kind != "f":
        return array.tolist()
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()
