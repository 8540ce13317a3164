"""The trainings of `jaxprune claims`: the comparisons of all points, then lottery tickets."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console

from jaxprune.commands.run_folder import RunFolder
from jaxprune.experiments import tickets
from jaxprune.experiments.claims import report
from jaxprune.experiments.claims.points import Comparison, comparisons
from jaxprune.experiments.claims.settings import ClaimsSettings
from jaxprune.experiments.compare.removed import LARGE_BATCH
from jaxprune.experiments.compare.trainings import check_files, lines_of, speeds_of, trained
from jaxprune.experiments.data import Data
from jaxprune.experiments.programs import trace_programs
from jaxprune.experiments.results import Record
from jaxprune.plots import plot_accuracy, plot_latency


def train(settings: ClaimsSettings, data: Data, folder: RunFolder, console: Console) -> None:
    """Runs every training that has no record in the folder yet, then writes the results.

    Raises:
      ValueError: before anything is compiled, if the folder is damaged.
    """
    chosen = comparisons(settings, data)
    folder.begin(settings, data.fingerprint())
    for point in chosen:
        check_files(point.methods, folder, point.name)
    parts: dict[str, Any] = {}
    times: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    for point in chosen:
        records, times[point.name] = trained(
            point.settings,
            point.task,
            point.methods,
            folder,
            console,
            point.name,
            lambda _, name=point.name: name == "structure",
        )
        parts[point.name] = {
            "title": point.title,
            "claim": point.claim,
            "model": point.settings.model,
            "steps": point.settings.steps,
            "pairs": [list(pair) for pair in point.pairs],
            "records": records,
        }
        pictures[point.name] = _picture(point, records, times[point.name])
    if report.TICKETS in settings.points:
        of = settings.tickets()
        _, rows, _ = tickets.trained(of, trace_programs(of, data), folder, console)
        records = tickets.records_of(of, rows)
        parts[report.TICKETS] = {"steps": of.steps, "records": records}
        pictures[report.TICKETS] = tickets.figure_of(of, records)
    _write(folder, settings, {name: parts[name] for name in settings.points}, times, pictures)


def _picture(point: Comparison, records: list[Record], times: dict[str, Any]) -> Any:
    dense = 100 * float(np.mean(records[0]["test_accuracy"]))
    title = f"{point.title}: {point.settings.model} on {point.settings.data}"
    if point.name == "structure":
        return plot_latency(
            speeds_of(records[1:], times), level=("dense", dense), title=f"{title}, batches of {LARGE_BATCH}"
        )
    return plot_accuracy(lines_of(records), level=("dense", dense), title=title)


def _write(
    folder: RunFolder,
    settings: ClaimsSettings,
    parts: dict[str, Any],
    times: dict[str, Any],
    pictures: dict[str, Any],
) -> None:
    results = {"settings": settings.of_the_result(), "parts": parts}
    for name, figure in pictures.items():
        folder.write(f"{name}.png", lambda path, figure=figure: figure.savefig(path, format="png"))
    page = report.markdown({**results, "times": times})
    folder.write_text("claims.md", page)
    folder.write_times(times)
    folder.finish(results)
