"""The trainings of `jaxprune compare`: every method at every sparsity."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxprune.commands.run_folder import RunFolder
from jaxprune.experiments.classification import Classification, classification
from jaxprune.experiments.compare import results
from jaxprune.experiments.compare.combinations import Method, methods
from jaxprune.experiments.compare.programs import compile_program, curve_steps
from jaxprune.experiments.compare.removed import LARGE_BATCH, measure_costs, removes_units
from jaxprune.experiments.compare.results import DENSE, key_of
from jaxprune.experiments.compare.settings import CompareSettings
from jaxprune.experiments.compare.start import fresh_params, keys
from jaxprune.experiments.data import Data
from jaxprune.experiments.results import Record, percent, write_csv
from jaxprune.params import flatten_with_paths
from jaxprune.plots import plot_accuracy, plot_curves, plot_latency
from jaxprune.progress import progress_bar
from jaxprune.recipes import Recipe


def train(settings: CompareSettings, data: Data, folder: RunFolder, console: Console) -> None:
    """Runs every training that has no record in the folder yet, then writes the results.

    Raises:
      ValueError: before anything is compiled, if a recipe rejects the settings or the folder is damaged.
    """
    task = classification(settings.model, data, settings.batch_size)
    chosen, left_out = methods(settings, task)
    folder.begin(settings, data.fingerprint())
    check_files(chosen, folder)
    records, times = trained(settings, task, chosen, folder, console)
    _write(settings, folder, records, times, left_out)


def trained(
    settings: CompareSettings,
    task: Classification,
    chosen: list[Method],
    folder: RunFolder,
    console: Console,
    part: str = "",
    is_measured: Callable[[Recipe], bool] = removes_units,
) -> tuple[list[Record], dict[str, Any]]:
    """The records of all methods, in their order, and their times; each is on disk before the next trains.

    Args:
      settings, task: what to train.
      chosen: the methods.
      folder: has the records of an interrupted run.
      console: shows the progress.
      part: the name of this comparison in a command that makes several.
      is_measured: of which recipes the costs (`measure_costs`, first seed) are added to the times.
    """
    places = [(method, sparsity) for method in chosen for sparsity in method.sparsities]
    is_done = {(method.name, s): folder.has_training(_file(part, method.name, s)) for method, s in places}
    left = [method for method in chosen if not all(is_done[method.name, s] for s in method.sparsities)]
    streams = keys(settings)
    params = jax.eval_shape(task.init_fn, jax.random.key(0))
    sizes = dict(zip(*flatten_with_paths(jax.tree.map(lambda w: w.size, params))[:2], strict=True))
    first = fresh_params(task, streams) if left else None
    # The next programs compile while one runs.
    pool = ThreadPoolExecutor(2)
    programs = [pool.submit(compile_program, settings, task, method) for method in left]
    try:
        with progress_bar(console) as progress:
            bar = progress.add_task(
                part or "methods", total=len(places), completed=sum(is_done.values()), note=""
            )
            for method, compiled in zip(left, programs, strict=True):
                program = compiled.result()
                for sparsity in method.sparsities:
                    if is_done[method.name, sparsity]:
                        continue
                    begun = time.perf_counter()
                    found = jax.block_until_ready(program.run(sparsity, streams, first))
                    seconds = time.perf_counter() - begun
                    recipe = method.recipe(sparsity)
                    made = results.record(
                        method.name,
                        sparsity,
                        DENSE if method.name == DENSE else str(recipe),
                        recipe.trainings(settings.steps),
                        curve_steps(settings, recipe),
                        found.kept,
                        found.rounds,
                        found.curve,
                        sizes,
                    )
                    times: dict[str, Any] = {"seconds": seconds, "compiling": program.seconds}
                    if is_measured(recipe):
                        wait(programs)  # a clock needs the machine for itself
                        of_full_size = jax.tree.map(lambda x: x[0], first)
                        times |= measure_costs(task, recipe, found.params, found.pruned, of_full_size)
                    folder.save_training(_file(part, method.name, sparsity), {"record": made, "times": times})
                    progress.update(bar, advance=1, note=_note(made))
    finally:
        pool.shutdown(cancel_futures=True)
    stored = [folder.load_training(_file(part, method.name, s)) for method, s in places]
    of_all = {key_of(at["record"]["method"], at["record"]["sparsity"]): at["times"] for at in stored}
    return [at["record"] for at in stored], of_all


def lines_of(records: list[Record]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Method -> (percent of the weights kept, accuracies in percent (sparsities, seeds))."""
    lines = {}
    for name in dict.fromkeys(r["method"] for r in records if r["method"] != DENSE):
        of = [r for r in records if r["method"] == name]
        kept = np.asarray([100 * np.mean(r["kept_fraction"]) for r in of])
        lines[name] = kept, np.asarray([100 * np.asarray(r["test_accuracy"]) for r in of])
    return lines


def check_files(chosen: list[Method], folder: RunFolder, part: str = "") -> None:
    """Raises ValueError for a damaged file of an interrupted run."""
    for method in chosen:
        for sparsity in method.sparsities:
            if folder.has_training(_file(part, method.name, sparsity)):
                folder.load_training(_file(part, method.name, sparsity))


def _file(part: str, name: str, sparsity: float) -> str:
    words = "_".join([*part.split(), *name.replace(":", "of").split()])
    return f"{words}-{sparsity!r}.json"


def _write(
    settings: CompareSettings,
    folder: RunFolder,
    records: list[Record],
    times: dict[str, Any],
    left_out: dict[str, str],
) -> None:
    folder.write("results.csv", lambda path: write_csv(path, records, ("method", "sparsity")))
    title = f"{settings.model} on {settings.data}, {settings.steps} steps in all, {settings.seeds} seeds"
    dense = 100 * float(np.mean(records[0]["test_accuracy"]))
    pictures = {"plot.png": plot_accuracy(lines_of(records), level=("dense", dense), title=title)}
    pictures["curves.png"] = plot_curves(_curves(records), title=title)
    fast = [r for r in records if "latency" in times[key_of(r["method"], r["sparsity"])]]
    if fast:
        pictures["latency.png"] = plot_latency(
            speeds_of(fast, times), level=("dense", dense), title=f"{title}, batches of {LARGE_BATCH}"
        )
    for name, figure in pictures.items():
        folder.write(name, lambda path, figure=figure: figure.savefig(path, format="png"))
    folder.write_times(times)
    folder.finish({"settings": settings.of_the_result(), "records": records, "left_out": left_out})


def _curves(records: list[Record]) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Sparsity -> method -> (steps, accuracies in percent (steps, seeds)); the dense network is in all."""

    def curve(r: Record) -> tuple[np.ndarray, np.ndarray]:
        return np.asarray(r["curve"]["steps"]), np.asarray(
            [percent(of_seed) for of_seed in r["curve"]["test_accuracy"]]
        ).T

    sparsities = list(dict.fromkeys(r["sparsity"] for r in records if r["method"] != DENSE))
    return {
        f"sparsity {100 * s:g} %": {r["method"]: curve(r) for r in records if r["sparsity"] in (0.0, s)}
        for s in sparsities
    }


def speeds_of(records: list[Record], times: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Method -> (latencies of the large batch, accuracies in percent (sparsities, seeds))."""
    found = {}
    for name in dict.fromkeys(r["method"] for r in records):
        of = [r for r in records if r["method"] == name]
        shares = [times[key_of(name, r["sparsity"])]["latency"][LARGE_BATCH] for r in of]
        found[name] = np.asarray(shares), np.asarray([100 * np.asarray(r["test_accuracy"]) for r in of])
    return found


def _note(made: Record) -> str:
    accuracy = 100 * float(np.mean(made["test_accuracy"]))
    return f"{made['method']} at {100 * made['sparsity']:g} %: accuracy {accuracy:.2f} %"
