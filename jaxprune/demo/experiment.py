"""`jaxprune imp`: tickets round by round, then the controls under the masks of every round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxprune.demo import data as datasets
from jaxprune.demo import results
from jaxprune.demo.programs import Programs, compile_programs
from jaxprune.demo.results import KINDS, RANDOM, REINITIALIZED, TICKET, TITLES
from jaxprune.demo.run_folder import RunFolder, check_out, open_folder
from jaxprune.demo.settings import Settings
from jaxprune.imp import Round
from jaxprune.plots import Line, plot_tickets


def run(settings: Settings, console: Console) -> None:
    """The whole command: trains what is not in `settings.out` yet, writes the results there and shows them.

    Raises:
      ValueError: settings, data or folder that can't be used; nothing was changed then.
    """
    settings.check()
    check_out(settings)
    data = datasets.load(settings.data, settings.data_dir)
    finished = RunFolder(Path(settings.out)).is_finished
    if not (settings.resume and finished):
        with console.status("compiling"):
            programs = compile_programs(settings, data)
        folder = open_folder(settings, data.fingerprint())
        _train(settings, programs, folder, console)
    else:
        folder = open_folder(settings, data.fingerprint())
        console.print(f"The run in {folder.path} is finished.")
    console.print(results.table(folder.results()))
    console.print(f"Results, plot and checkpoint are in {folder.path}")


def _train(settings: Settings, programs: Programs, folder: RunFolder, console: Console) -> None:
    """Every training that has no row yet, then the results."""
    tickets, params = _tickets(settings, programs, folder, console)
    rows: dict[tuple[str, int], Round] = {(TICKET, r): row for r, row in enumerate(tickets)}
    rows |= _controls(settings, programs, folder, tickets, console)
    _write(settings, programs, folder, rows, params)


def _tickets(
    settings: Settings, programs: Programs, folder: RunFolder, console: Console
) -> tuple[list[Round], Any]:
    """Rows of all rounds, and the parameters after the last."""
    done = folder.next_round()
    carry = folder.load_carry(programs.abstract_carry) if done else programs.first()
    rows = [folder.load_row(TICKET, r, programs.abstract_row) for r in range(done)]
    with progress_bar(console) as progress:
        task = progress.add_task(TITLES[TICKET], total=settings.rounds + 1, completed=done, note="")
        for r in range(done, settings.rounds + 1):
            carry, row = jax.block_until_ready(programs.round(carry))
            # A row without its carry was written by a process that was then killed: it is the same.
            if not folder.has_row(TICKET, r):
                folder.save_row(TICKET, r, row)
            folder.save_carry(r + 1, carry)
            rows.append(row)
            progress.update(task, advance=1, note=_note(row))
    return rows, carry.state.params


def _controls(
    settings: Settings, programs: Programs, folder: RunFolder, tickets: list[Round], console: Console
) -> dict[tuple[str, int], Round]:
    """Rows of both controls from round 1 on; under the full masks of round 0 there is nothing to compare."""
    rows = {}
    with progress_bar(console) as progress:
        for kind, train in ((REINITIALIZED, programs.reinitialized), (RANDOM, programs.random)):
            task = progress.add_task(TITLES[kind], total=settings.rounds, note="")
            for r in range(1, settings.rounds + 1):
                if folder.has_row(kind, r):
                    rows[kind, r] = folder.load_row(kind, r, programs.abstract_control)
                else:
                    rows[kind, r] = jax.block_until_ready(train(tickets[r].masks, r))
                    folder.save_row(kind, r, rows[kind, r])
                progress.update(task, advance=1, note=_note(rows[kind, r]))
    return rows


def _write(
    settings: Settings,
    programs: Programs,
    folder: RunFolder,
    rows: dict[tuple[str, int], Round],
    params: Any,
) -> None:
    steps = tuple(range(settings.evaluate_every, settings.steps + 1, settings.evaluate_every))
    records = [results.record(kind, r, row, steps) for (kind, r), row in rows.items()]
    content = {"settings": settings.of_the_result(), "curve_steps": list(steps), "records": records}
    masks = jax.tree.map(
        lambda *of_rounds: jnp.stack(of_rounds),
        *(rows[TICKET, r].masks for r in range(settings.rounds + 1)),
    )
    folder.save_checkpoint({"initial": programs.initial(), "params": params, "masks": masks})
    folder.write("results.csv", lambda path: results.write_csv(path, records))
    figure = plot_tickets(
        {TITLES[kind]: _line([r for r in records if r["kind"] == kind]) for kind in KINDS},
        title=f"{settings.model} on {settings.data}, {settings.steps} steps a round, {settings.seeds} seeds",
    )
    folder.write("plot.png", lambda path: figure.savefig(path, format="png"))
    folder.finish(content)


def _line(records: list[results.Record]) -> Line:
    return Line(
        np.asarray([100 * np.mean(r["kept_fraction"]) for r in records]),
        np.asarray([results.percent(r["test_accuracy"]) for r in records]),
        np.asarray([r["early_stop_step"] for r in records]),
    )


def progress_bar(console: Console) -> Progress:
    """The bar of both commands; its tasks have a field `note`."""
    return Progress(
        TextColumn("{task.description:<13}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def _note(row: Round) -> str:
    kept = 100 * (1 - float(np.mean(row.sparsity)))
    accuracy = 100 * float(np.mean(row.evaluation["test_accuracy"]))
    return f"{kept:.2f} % kept, accuracy {accuracy:.2f} %"
