"""The results of the methods as readable numbers: records and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import rich.box
import rich.console
import rich.table

from jaxprune.experiments.results import Record, mean_and_spread, plain

if TYPE_CHECKING:
    import jax

DENSE = "dense"


def record(
    name: str,
    sparsity: float,
    printed: str,
    trainings: tuple[int, ...],
    steps: tuple[int, ...],
    kept_by_layer: dict[str, jax.Array],
    rounds: dict[str, jax.Array],
    curve: dict[str, jax.Array],
    sizes: dict[str, int],
) -> Record:
    """One method at one sparsity, in plain numbers; lists have one entry for each seed. Accuracies are fractions.

    `trainings` has the number of steps of each training and the metrics at their ends, (seeds, trainings); `curve`
    the steps, counted through all trainings, and the metrics there, (seeds, steps).
    """
    layers = {path: np.asarray(kept) for path, kept in kept_by_layer.items()}
    kept = sum(layers.values())
    at = [i for i, step in enumerate(steps) if step >= 0]
    along = {metric: np.asarray(values) for metric, values in curve.items()}
    return {
        "method": name,
        "sparsity": sparsity,
        "choices": printed,
        "kept": plain(np.asarray(kept)),
        "kept_fraction": plain(np.asarray(kept) / sum(sizes[path] for path in layers)),
        "smallest_layer": plain(np.min(list(layers.values()), axis=0)),
        "kept_by_layer": {path: plain(values) for path, values in layers.items()},
        **{metric: plain(np.asarray(values)[:, -1]) for metric, values in rounds.items()},
        "trainings": {
            "steps": list(trainings),
            **{metric: plain(np.asarray(values)) for metric, values in rounds.items()},
        },
        "curve": {
            "steps": [steps[i] for i in at],
            **{metric: plain(v.reshape(len(v), -1)[:, at]) for metric, v in along.items()},
        },
    }


def table(results: dict[str, Any]) -> rich.console.Group:
    """Accuracies by method and sparsity, below them the kept weights of the smallest layer, and what was left out."""
    settings, records = results["settings"], results["records"]
    by = {(r["method"], r["sparsity"]): r for r in records}
    dense = by[DENSE, 0.0]
    seeds, sparsities = settings["seeds"], settings["sparsities"]
    names = list(dict.fromkeys(r["method"] for r in records if r["method"] != DENSE))
    times = results.get("times", {})
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    accuracies, smallest = _table(sparsities, times), _table(sparsities, {})
    best = [max((_mean(by[name, s]) for name in names if (name, s) in by), default=0.0) for s in sparsities]
    for name in names:
        row = [by.get((name, s)) for s in sparsities]
        told = (
            f"[bold]{_accuracy(r)}[/]" if r and _mean(r) == top else _accuracy(r)
            for r, top in zip(row, best, strict=True)
        )
        some = next(r for r in row if r)
        accuracies.add_row(name, *told, *([steps_of(some), _seconds(times, name)] if times else []))
        smallest.add_row(name, *(f"{min(r['smallest_layer']):,}" if r else "–" for r in row))
    parts = [
        f"Methods: {settings['model']} on {settings['data']}, {settings['steps']} steps in all. Test accuracy in "
        f"% after the last step, {spread}. Dense: {_accuracy(dense)}.",
        accuracies,
        f"Kept weights in the smallest layer, the fewest over {seeds} seeds (0: a whole layer is pruned)."
        if seeds > 1
        else "Kept weights in the smallest layer (0: a whole layer is pruned).",
        smallest,
    ]
    if latencies := {key: of["latency"] for key, of in times.items() if "latency" in of}:
        parts += ["Latency of the network without the pruned units, as a share of the dense network's.", ""]
        parts[-1] = _latency_table(latencies)
    parts += [
        f"Left out: {', '.join(names)}. {why}" for why, names in _by_reason(results["left_out"]).items()
    ]
    return rich.console.Group(*parts)


def _by_reason(left_out: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, why in left_out.items():
        found.setdefault(why, []).append(name)
    return found


def key_of(name: str, sparsity: float) -> str:
    """The name of a training in times.json."""
    return f"{name} {sparsity!r}"


def _table(sparsities: list[float], times: dict[str, Any]) -> rich.table.Table:
    # A table's own caption would be wrapped to its width, which may be that of one column.
    made = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("method", no_wrap=True)
    for sparsity in sparsities:
        made.add_column(f"{100 * sparsity:g} %", justify="right", overflow="fold")
    if times:
        made.add_column("steps", justify="right", style="dim")
        made.add_column("seconds", justify="right", style="dim")
    return made


def _latency_table(latencies: dict[str, dict[str, float]]) -> rich.table.Table:
    made = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("method, sparsity", no_wrap=True)
    sizes = list(next(iter(latencies.values())))
    for size in sizes:
        made.add_column(f"batch {size}", justify="right")
    for name, of in latencies.items():
        made.add_row(name, *(f"{of[size]:.2f}" for size in sizes))
    return made


def steps_of(r: Record) -> str:
    """The steps of each training, such as 5 x 80."""
    trainings = r["trainings"]["steps"]
    if len(set(trainings)) > 1:
        return " + ".join(map(str, trainings))
    return f"{len(trainings)} x {trainings[0]}"


def _seconds(times: dict[str, Any], name: str) -> str:
    """Wall time of running all sparsities, and of compiling."""
    found = [of for key, of in times.items() if key.rsplit(" ", 1)[0] == name]
    return (
        f"{sum(of['seconds'] for of in found):.1f} + {max(of['compiling'] for of in found):.1f}"
        if found
        else "–"
    )


def _accuracy(r: Record | None) -> str:
    # Without the spaces five sparsities fit 80 columns.
    return mean_and_spread(r["test_accuracy"]).replace(" ", "") if r else "–"


def _mean(r: Record) -> float:
    return float(np.mean(r["test_accuracy"]))
