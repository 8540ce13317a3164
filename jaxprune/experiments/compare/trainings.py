"""The trainings of `jaxprune compare`: every recipe at every sparsity."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxprune.commands.run_folder import RunFolder
from jaxprune.experiments.classification import Classification, classification
from jaxprune.experiments.compare import results
from jaxprune.experiments.compare.chosen import MAKE
from jaxprune.experiments.compare.programs import compile_program, fresh_params, keys, measure
from jaxprune.experiments.compare.results import DENSE
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.experiments.data import Data
from jaxprune.experiments.results import Record, write_csv
from jaxprune.params import flatten_with_paths
from jaxprune.plots import plot_accuracy
from jaxprune.progress import progress_bar


def train(settings: CompareSettings, data: Data, folder: RunFolder, console: Console) -> None:
    """Runs every training that has no record in the folder yet, then writes the results.

    Raises:
      ValueError: before anything is compiled, if a recipe rejects the settings or the folder is damaged.
    """
    chosen = _chosen(settings)
    folder.begin(settings, data.fingerprint())
    for at in chosen:
        if folder.has_training(_file(*at)):
            folder.load_training(_file(*at))  # a damaged file is reported now
    task = classification(settings.model, data, settings.batch_size)
    _write(settings, folder, _records(settings, task, chosen, folder, console))


def _chosen(settings: CompareSettings) -> dict[tuple[str, float], Any]:
    """(name, sparsity) -> recipe; None for the dense network."""
    chosen: dict[tuple[str, float], Any] = {(DENSE, 0.0): None}
    for name in settings.recipes:
        for sparsity in settings.sparsities:
            try:
                recipe = MAKE[name](sparsity)
                recipe.trainings(settings.steps)  # raises for too few steps
            except ValueError as error:
                raise ValueError(
                    f"--recipes {name} at --sparsities {sparsity:g} and --steps {settings.steps}: {error}"
                ) from None
            chosen[name, sparsity] = recipe
    return chosen


def _file(name: str, sparsity: float) -> str:
    return f"{name}-{sparsity!r}.json"


def _records(
    settings: CompareSettings,
    task: Classification,
    chosen: dict[tuple[str, float], Any],
    folder: RunFolder,
    console: Console,
) -> list[Record]:
    """The records of all recipes, in their order; each is on disk before the next recipe trains."""
    params = jax.eval_shape(task.init_fn, jax.random.key(0))
    sizes = dict(zip(*flatten_with_paths(jax.tree.map(lambda w: w.size, params))[:2], strict=True))
    streams, measured = keys(settings), measure(task)
    first = fresh_params(task, streams)
    left = [at for at in chosen if not folder.has_training(_file(*at))]
    # The next programs compile while one runs.
    pool = ThreadPoolExecutor(2)
    programs = pool.map(lambda at: compile_program(settings, task, chosen[at]), left)
    try:
        with progress_bar(console) as progress:
            done = len(chosen) - len(left)
            bar = progress.add_task("recipes", total=len(chosen), completed=done, note="")
            for at, program in zip(left, programs, strict=True):
                trained, kept = program(streams, first)
                made = results.record(*at, str(chosen[at] or DENSE), kept, measured(trained), sizes)
                folder.save_training(_file(*at), made)
                progress.update(bar, advance=1, note=_note(made))
    finally:
        pool.shutdown(cancel_futures=True)
    return [folder.load_training(_file(*at)) for at in chosen]


def _write(settings: CompareSettings, folder: RunFolder, records: list[Record]) -> None:
    folder.write("results.csv", lambda path: write_csv(path, records, ("recipe", "sparsity")))
    lines = {}
    for name in settings.recipes:
        of = [r for r in records if r["recipe"] == name]
        kept = np.asarray([100 * np.mean(r["kept_fraction"]) for r in of])
        lines[name] = kept, np.asarray([100 * np.asarray(r["test_accuracy"]) for r in of])
    dense = 100 * float(np.mean(records[0]["test_accuracy"]))
    figure = plot_accuracy(
        lines,
        level=("dense", dense),
        title=f"{settings.model} on {settings.data}, {settings.steps} steps in all, {settings.seeds} seeds",
    )
    folder.write("plot.png", lambda path: figure.savefig(path, format="png"))
    folder.finish({"settings": settings.of_the_result(), "records": records})


def _note(made: Record) -> str:
    accuracy = 100 * float(np.mean(made["test_accuracy"]))
    return f"{made['recipe']} at {100 * made['sparsity']:g} %: accuracy {accuracy:.2f} %"
