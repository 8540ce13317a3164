"""Tables and figures of what `instability.py` has measured.

python benchmarks/instability_figures.py [--runs runs/tickets] [--figures docs]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxprune.plots import plot_instability, plot_rewinding, plot_sanity_checks
from jaxprune.round_history import Round
from jaxprune.tickets import Instabilities

TITLES = {"lenet": "LeNet-300-100 on MNIST", "resnet": "ResNet-8 on MNIST of 8 x 8 pixels"}
STABLE = 0.5  # points of error
METRIC = "error (%)"


def spread(values: Any) -> str:
    """Mean and standard deviation over the seeds."""
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def instabilities(name: str, found: dict[str, Any], figures: Path) -> None:
    barrier = np.asarray(found["rows"]["barrier"]["error"])  # (seeds, lines, splits)
    ends = np.asarray(found["rows"]["ends"]["error"]).mean(-1)
    splits = found["splits"]
    print(f"\n## {TITLES[name]}: barrier, then error of the two copies\n")
    header = ["k", *found["names"]]
    for values in (barrier, ends):
        rows = [[str(k), *(spread(line) for line in values[:, :, i].T)] for i, k in enumerate(splits)]
        print(table(header, rows))
    lines = {
        line: Instabilities(np.asarray(splits), None, None, {METRIC: barrier[:, i]})  # type: ignore[arg-type]
        for i, line in enumerate(found["names"])
        if barrier[:, i].mean() < 5  # others would press all lines to the ground: they are in the table
    }
    figure = plot_instability(lines, (f"{STABLE} points", STABLE), TITLES[name])
    figure.savefig(figures / f"instability_{name}.png")


def rewinding(name: str, found: dict[str, Any], figures: Path) -> None:
    error = np.asarray(found["history"]["evaluation"]["error"])  # (seeds, steps, rounds)
    sparsity = np.asarray(found["history"]["sparsity"])
    header = ["k", *(f"{100 * (1 - s):.3g} %" for s in sparsity[0, 0])]
    print(f"## {TITLES[name]}: error of the tickets rewound to k\n")
    rows = [[str(k), *(spread(line) for line in error[:, i].T)] for i, k in enumerate(found["splits"])]
    print(table(header, rows))
    history = Round(None, sparsity, None, {}, {METRIC: error}, (), ())  # type: ignore[arg-type]
    figure = plot_rewinding(found["splits"], history, title=TITLES[name])
    figure.savefig(figures / f"rewinding_{name}.png")


def checks(path: Path, found: dict[str, Any], figures: Path) -> None:
    _, name, step = path.stem.split("-")
    rest = sorted((n for n in found if n not in ("dense", "ticket")), key=lambda n: np.mean(found[n]))
    order = ["ticket", "dense", *rest]
    title = f"{TITLES[name]}, from step {step}"
    print(f"## {title}: sanity checks, error\n")
    print(table(["variant", METRIC], [[n, spread(found[n])] for n in order]))
    figure = plot_sanity_checks({n: {METRIC: np.asarray(found[n])} for n in order}, title)
    figure.savefig(figures / f"checks_{name}_{step}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/tickets"))
    parser.add_argument("--figures", type=Path, default=Path("docs"))
    options = parser.parse_args()
    for name in TITLES:
        found = json.loads((options.runs / f"{name}.json").read_text())
        instabilities(name, found, options.figures)
        rewinding(name, found, options.figures)
    for path in sorted(options.runs.glob("checks-*.json")):
        checks(path, json.loads(path.read_text()), options.figures)


if __name__ == "__main__":
    main()
