"""The results of the recipes as readable numbers: records and tables."""

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
    kept_by_layer: dict[str, jax.Array],
    metrics: dict[str, jax.Array],
    sizes: dict[str, int],
) -> Record:
    """One recipe at one sparsity, in plain numbers; lists have one entry for each seed. Accuracies are fractions."""
    layers = {path: np.asarray(kept) for path, kept in kept_by_layer.items()}
    kept = sum(layers.values())
    return {
        "recipe": name,
        "sparsity": sparsity,
        "choices": printed,
        "kept": plain(np.asarray(kept)),
        "kept_fraction": plain(np.asarray(kept) / sum(sizes[path] for path in layers)),
        "smallest_layer": plain(np.min(list(layers.values()), axis=0)),
        "kept_by_layer": {path: plain(values) for path, values in layers.items()},
        **{metric: plain(np.asarray(values)) for metric, values in metrics.items()},
    }


def table(results: dict[str, Any]) -> rich.console.Group:
    """Accuracies by recipe and sparsity, and below them the number of kept weights in the smallest layer."""
    settings, records = results["settings"], results["records"]
    by = {(r["recipe"], r["sparsity"]): r for r in records}
    dense = by[DENSE, 0.0]
    seeds = settings["seeds"]
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    accuracies, smallest = _table(settings["sparsities"]), _table(settings["sparsities"])
    best = [
        max((_mean(by[name, s]) for name in settings["recipes"]), default=0.0) for s in settings["sparsities"]
    ]
    for name in settings["recipes"]:
        row = [by[name, s] for s in settings["sparsities"]]
        accuracies.add_row(
            name,
            *(
                f"[bold]{_accuracy(r)}[/]" if _mean(r) == top else _accuracy(r)
                for r, top in zip(row, best, strict=True)
            ),
        )
        smallest.add_row(name, *(f"{min(r['smallest_layer']):,}" for r in row))
    return rich.console.Group(
        f"Recipes: {settings['model']} on {settings['data']}, {settings['steps']} steps in all. Test accuracy in "
        f"% after the last step, {spread}. Dense: {_accuracy(dense)}.",
        accuracies,
        f"Kept weights in the smallest layer, the fewest over {seeds} seeds (0: a whole layer is pruned)."
        if seeds > 1
        else "Kept weights in the smallest layer (0: a whole layer is pruned).",
        smallest,
    )


def _table(sparsities: list[float]) -> rich.table.Table:
    # A table's own caption would be wrapped to its width, which may be that of one column.
    made = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    made.add_column("recipe", no_wrap=True)
    for sparsity in sparsities:
        made.add_column(f"{100 * sparsity:g} %", justify="right", overflow="fold")
    return made


def _accuracy(r: Record) -> str:
    # Without the spaces five sparsities fit 80 columns.
    return mean_and_spread(r["test_accuracy"]).replace(" ", "")


def _mean(r: Record) -> float:
    return float(np.mean(r["test_accuracy"]))
