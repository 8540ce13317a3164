"""Which groups are found in many architectures, what is frozen and why, and how large is the lossless error?

Each model loses a random half of every group. The table has: equations of the traced function; seconds to trace and
analyse it; groups and their sizes; what is frozen, beyond the axes of inputs and outputs; the largest error of
the small function against the masked one; the same against `jp.masked_fn` under the masks of the plan, as a training
with coupled units has them; the same against the original function on zeroed parameters, and the reductions where
zeroing is not removal.

    python benchmarks/surgery_survey.py                           # the models of tests/surgery
    python benchmarks/surgery_survey.py --from own haiku flaxmodels equimo transformers --markdown FILE
    python benchmarks/surgery_survey.py --from transformers --only bert --table     # with its table of groups
    python benchmarks/surgery_survey.py --layers --from own haiku                   # layers in place of units
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import surgery_survey_layers as of_layers
import surgery_survey_models as models
from surgery_measure import machine, show
from surgery_survey_sources import SOURCES

import jaxprune as jp
from jaxprune.surgery import Groups, plan_units
from jaxprune.surgery.inference.frames import Frame

HEADS = (
    "model",
    "equations",
    "analysis, s",
    "groups and their units",
    "frozen",
    "masked",
    "masked_fn",
    "zeroed",
    "zeroing differs in",
)


def random_plan(groups: Groups, seed: int = 0, share: float = 0.5) -> jp.Plan:
    """Removes a random half of every group."""
    rng = np.random.default_rng(seed)
    keep = {}
    for group in groups:
        mask = np.zeros(group.size, bool)
        mask[rng.permutation(group.size)[: max(1, round(group.size * (1 - share)))]] = True
        keep[group.name] = mask
    return plan_units(groups, keep)


def equations(frame: Frame) -> int:
    """Equations of a traced function, those of the functions that it calls included."""
    bodies = [body for bodies in frame.calls.values() for body in bodies]
    return len(frame.jaxpr.eqns) - len(frame.calls) + sum(map(equations, bodies))


def survey(make: models.Make, show_groups: bool) -> tuple[bool, tuple[str, ...]]:
    fn, params, inputs = make()
    start = time.perf_counter()
    groups = jp.find_groups(fn, params, *inputs)
    seconds = time.perf_counter() - start
    if show_groups:
        print(groups)
    size = str(equations(groups.model.frame))
    frozen = "; ".join(why(groups)) or "–"
    if not groups.groups:
        return True, (size, f"{seconds:.2f}", "none", frozen, "–", "–", "–", "")
    plan = random_plan(groups)
    report = plan.verify(fn, params, *inputs)
    of_masks = masked_error(fn, params, inputs, groups, plan)
    counts = Counter(group.size for group in groups)
    sizes = ", ".join(f"{n} of {units}" for units, n in sorted(counts.items()))
    differs = "; ".join(sorted({line(text) for text in report.differences}))
    errors = (f"{error:.0e}" for error in (report.masked, of_masks, report.zeroed))
    cells = (f"{len(groups)}: {sizes}", frozen, *errors, differs)
    return report.ok and of_masks < 1e-5, (size, f"{seconds:.2f}", *cells)


def masked_error(fn: Callable, params: Any, inputs: tuple[Any, ...], groups: Groups, plan: jp.Plan) -> float:
    """Largest difference of the masked function and the small one, relative to the largest output."""
    masks = plan.masks(params)
    jp.plan_from_masks(groups, masks)  # checks that they are whole units
    small = jax.jit(plan.compact(fn))(plan.shrink(params), *inputs)
    masked = jax.jit(jp.masked_fn(fn, groups))(params, masks, *inputs)
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(*map(jax.tree.leaves, (small, masked)), strict=True)
        if jnp.issubdtype(a.dtype, jnp.floating)
    ]
    largest = max((float(np.max(np.abs(b), initial=0)) for _, b in pairs), default=1.0)
    return max((float(np.max(np.abs(a - b), initial=0)) for a, b in pairs), default=0.0) / max(largest, 1e-30)


def why(groups: Groups) -> list[str]:
    """Reasons other than inputs and outputs, each with the parameters it holds."""
    found: dict[str, set[str]] = {}
    for reason, members in groups.frozen:
        text = reason.split(" at ")[0]
        if not re.match(r"axis \d+ of (the output|output|input)", text):
            found.setdefault(text, set()).update(f"{m.path}[{m.axis}]" for m in members)
    return [f"{text} ({len(paths)} axes)" for text, paths in sorted(found.items())]


def line(difference: str) -> str:
    """A reduction and its source line, without the folders."""
    return re.sub(r"(\S*/)?([^/\s]+/[^/\s]+:\d+)\S*", r"\2", difference)


def layers(sources: list[str], only: list[str], file: Path | None) -> None:
    """The residual models: branches found, and the error of leaving each out."""
    # Fused operations round differently in the two functions; what is compared is what they compute.
    jax.config.update("jax_disable_most_optimizations", True)
    found = expected = total = 0
    worst = 0.0
    for source in sources:
        rows, makes = [], SOURCES[source]()
        for name, by_hand in of_layers.BY_HAND[source].items():
            if not any(part in name for part in only):
                continue
            total += 1
            try:
                count, error, cells = of_layers.survey_layers(makes[name], by_hand)
                found, worst = found + min(count, by_hand), max(worst, error)
                expected += by_hand
            except Exception as problem:
                cells = (str(by_hand), f"failed: {type(problem).__name__}: {str(problem)[:200]}", *[""] * 3)
                expected += by_hand
            print(f"{name}: {' | '.join(cells)}", flush=True)
            rows.append((name, *cells[:-1]))
        show(f"Layers of {source}", of_layers.HEADS[:-1], rows, f"{machine()}.", file)
    print(f"{found} of {expected} branches found in {total} models; largest error {worst:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", nargs="+", choices=SOURCES, default=["own"], dest="sources")
    parser.add_argument("--only", nargs="+", default=[""], help="models whose name contains one of these")
    parser.add_argument("--table", action="store_true", help="print the groups of each model")
    parser.add_argument("--markdown", type=Path, help="add the tables to this file")
    parser.add_argument("--layers", action="store_true", help="find and leave out layers, not units")
    options = parser.parse_args()
    if options.layers:
        layers(options.sources, options.only, options.markdown)
        return
    good = total = 0
    errors: list[tuple[float, str]] = []
    for source in options.sources:
        rows = []
        for name, make in SOURCES[source]().items():
            if not any(part in name for part in options.only):
                continue
            total += 1
            try:
                ok, cells = survey(make, options.table)
            except Exception as error:
                ok, cells = False, (f"failed: {type(error).__name__}: {str(error)[:200]}", *[""] * 7)
            good += ok
            if ok and cells[5] != "–":
                errors.append((float(cells[5]), name))
            print(f"{'ok    ' if ok else 'NOT OK'} {name}: {' | '.join(cells)}", flush=True)
            rows.append((name, *(cell.replace("|", "/") for cell in cells)))
        note = f"{sum(1 for row in rows)} models. {machine()}."
        show(f"Models of {source}", HEADS, rows, note, options.markdown)
    print(f"{good} of {total} models lossless")
    if errors:
        print(
            f"masked_fn on {len(errors)} models: the largest error is {max(errors)[0]:.0e}, {max(errors)[1]}"
        )


if __name__ == "__main__":
    main()
