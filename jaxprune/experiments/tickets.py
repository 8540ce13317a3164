"""The trainings of `jaxprune imp`: tickets round by round, then the controls under the masks of every round."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxprune._imp import Carry, Round
from jaxprune.commands.run_folder import RunFolder
from jaxprune.experiments import results
from jaxprune.experiments.data import Data
from jaxprune.experiments.programs import Programs, Traced, trace_programs
from jaxprune.experiments.results import KINDS, RANDOM, REINITIALIZED, TICKET, TITLES
from jaxprune.experiments.settings import Settings
from jaxprune.plots import Line, plot_tickets
from jaxprune.progress import progress_bar

Rows = dict[tuple[str, int], Round]


def train(settings: Settings, data: Data, folder: RunFolder, console: Console) -> None:
    """Runs every training that has no row in the folder yet, then writes the results.

    Raises:
      ValueError: before anything is compiled, if the library rejects the settings or the folder is damaged.
    """
    traced = trace_programs(settings, data)
    folder.begin(settings, data.fingerprint())
    programs, rows, params = trained(settings, traced, folder, console)
    _write(settings, programs, folder, rows, params)


def trained(
    settings: Settings, traced: Traced, folder: RunFolder, console: Console
) -> tuple[Programs, Rows, Any]:
    """The rows of all trainings, those in the folder among them, and the parameters after the last round."""
    done = folder.next_round()
    carry = folder.load_carry(traced.carry) if done else None
    rows = {(TICKET, r): folder.load_row(TICKET, r, traced.row) for r in range(done)}
    for kind, r in _of_controls(settings):
        if folder.has_row(kind, r):
            rows[kind, r] = folder.load_row(kind, r, traced.control)
    with console.status("compiling"):
        programs = traced.compile()
    params = _tickets(settings, programs, folder, rows, carry, console)
    _controls(settings, programs, folder, rows, console)
    return programs, rows, params


def records_of(settings: Settings, rows: Rows) -> list[results.Record]:
    """The records of all trainings, in their order."""
    order = [(TICKET, r) for r in range(settings.rounds + 1)] + _of_controls(settings)
    return [results.record(*at, rows[at], curve_steps(settings)) for at in order]


def curve_steps(settings: Settings) -> tuple[int, ...]:
    """Steps of the evaluations in each training."""
    return tuple(range(settings.evaluate_every, settings.steps + 1, settings.evaluate_every))


def figure_of(settings: Settings, records: list[results.Record]) -> Any:
    """Accuracy and early-stop step of tickets and controls."""
    return plot_tickets(
        {TITLES[kind]: _line([r for r in records if r["kind"] == kind]) for kind in KINDS},
        title=f"{settings.model} on {settings.data}, {settings.steps} steps a round, {settings.seeds} seeds",
    )


def _tickets(
    settings: Settings,
    programs: Programs,
    folder: RunFolder,
    rows: Rows,
    kept: Carry | None,
    console: Console,
) -> Any:
    """Adds the rows of the rounds after the stored carry; returns the parameters after the last round."""
    done = folder.next_round()
    carry = programs.first() if kept is None else kept
    with progress_bar(console) as progress:
        task = progress.add_task(TITLES[TICKET], total=settings.rounds + 1, completed=done, note="")
        for r in range(done, settings.rounds + 1):
            carry, row = jax.block_until_ready(programs.round(carry))
            # A row without its carry was written by a process that was then killed: it is the same.
            if not folder.has_row(TICKET, r):
                folder.save_row(TICKET, r, row)
            folder.save_carry(r + 1, carry)
            rows[TICKET, r] = row
            progress.update(task, advance=1, note=_note(row))
    return carry.state.params


def _of_controls(settings: Settings) -> list[tuple[str, int]]:
    """Kind and round of each control; under the full masks of round 0 there is nothing to compare."""
    return [(kind, r) for kind in (REINITIALIZED, RANDOM) for r in range(1, settings.rounds + 1)]


def _controls(
    settings: Settings, programs: Programs, folder: RunFolder, rows: Rows, console: Console
) -> None:
    """Adds the rows of the remaining controls."""
    train = {REINITIALIZED: programs.reinitialized, RANDOM: programs.random}
    with progress_bar(console) as progress:
        tasks = {}
        for kind, r in _of_controls(settings):
            if kind not in tasks:
                tasks[kind] = progress.add_task(TITLES[kind], total=settings.rounds, note="")
            if (kind, r) not in rows:
                rows[kind, r] = jax.block_until_ready(train[kind](rows[TICKET, r].masks, r))
                folder.save_row(kind, r, rows[kind, r])
            progress.update(tasks[kind], advance=1, note=_note(rows[kind, r]))


def _write(
    settings: Settings,
    programs: Programs,
    folder: RunFolder,
    rows: Rows,
    params: Any,
) -> None:
    records = records_of(settings, rows)
    content = {
        "settings": settings.of_the_result(),
        "curve_steps": list(curve_steps(settings)),
        "records": records,
    }
    masks = jax.tree.map(
        lambda *of_rounds: jnp.stack(of_rounds),
        *(rows[TICKET, r].masks for r in range(settings.rounds + 1)),
    )
    folder.save_checkpoint({"initial": programs.initial(), "params": params, "masks": masks})
    folder.write("results.csv", lambda path: results.write_csv(path, records))
    figure = figure_of(settings, records)
    folder.write("plot.png", lambda path: figure.savefig(path, format="png"))
    folder.finish(content)


def _line(records: list[results.Record]) -> Line:
    return Line(
        np.asarray([100 * np.mean(r["kept_fraction"]) for r in records]),
        np.asarray([results.percent(r["test_accuracy"]) for r in records]),
        np.asarray([r["early_stop_step"] for r in records]),
    )


def _note(row: Round) -> str:
    kept = 100 * (1 - float(np.mean(row.sparsity)))
    accuracy = 100 * float(np.mean(row.evaluation["test_accuracy"]))
    return f"{kept:.2f} % kept, accuracy {accuracy:.2f} %"
