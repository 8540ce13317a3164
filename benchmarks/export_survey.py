"""Which architectures go through jax.export and ONNX Runtime, and what do the others lack?

Each model of `surgery_survey.py` is exported with a symbolic batch; where that is refused, with the batch of the
example ("fixed"). The errors are the largest ones relative to the largest output, also at another batch size. A
model that takes more than `--seconds` of CPU time, or ends its process, counts as lacking. What is found is added to a
file line by line, and a later run goes on from there.

    python benchmarks/export_survey.py --from own haiku flaxmodels equimo transformers --results FILE.jsonl \
        --markdown benchmarks/export.md
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from surgery_measure import machine, show
from surgery_survey_sources import SOURCES

import jaxprune as jp

FORMATS = {"jax.export": "stablehlo", "ONNX Runtime": "onnx"}
HEADS = ("source", "model", "jax.export", "batch", "ONNX Runtime", "batch", "what is lacking")
TOLERANCE = 1e-5
SHAPES = {"Haiku transformer, LSTM": ("_, b, _",)}  # time is its first axis
BEFORE = ("can't be exported by jax.export: ", "can't be written as ONNX: ", "can't run the model: ")
AFTER = (" If it is the sizes", " Otherwise leave out", " Leave ", " This error arises", " See https")

Model = tuple[Callable, Any, tuple[Any, ...]]  # function, parameters, inputs
Name = tuple[str, str]  # source, model
Found = dict[str, Any]  # error, batch, what is lacking


def attempt(model: Model, titles: Sequence[str], shapes: Sequence[str] | None) -> dict[str, Found]:
    """Error, batch and what is lacking of a model in some formats; together if they all succeed."""
    lacking = ""
    for batch in ("b", None):
        try:
            errors = exported(model, batch, shapes, [FORMATS[title] for title in titles])
            found = {"batch": "any" if batch else "fixed", "lacking": lacking}
            return {title: {"error": errors[FORMATS[title]]["relative"], **found} for title in titles}
        except Exception as problem:
            if len(titles) > 1:
                return {title: attempt(model, [title], shapes)[title] for title in titles}
            lacking = lacking or reason(problem)
    return {titles[0]: nothing(lacking)}


def exported(
    model: Model, batch: str | None, shapes: Sequence[str] | None, formats: Sequence[str]
) -> dict[str, Any]:
    """The errors of an export."""
    fn, params, inputs = model
    sizes: dict[str, Any] = {"batch": batch, "shapes": shapes if batch else None}
    options: dict[str, Any] = {"constants": True, "latency_batches": (), "tolerance": TOLERANCE}
    with tempfile.TemporaryDirectory() as folder:
        done = jp.export(folder, fn, params, *inputs, formats=tuple(formats), **sizes, **options)
    return done.report["errors"]


def nothing(lacking: str) -> Found:
    return {"error": None, "batch": "none", "lacking": lacking}


def reason(error: Exception) -> str:
    """What is lacking, in few words."""
    text = str(error).replace("|", "/").replace("\n", " ")
    for before in BEFORE:
        text = text.split(before)[-1]
    for after in AFTER:
        text = text.split(after)[0]
    return text[:200]


def survey(names: Sequence[Name], file: Path, seconds: int) -> None:
    """Surveys models in this process, which is ended if one takes more than so many seconds of CPU time."""
    # Compiles faster, and what is compared is what the functions compute.
    jax.config.update("jax_disable_most_optimizations", True)
    for source, name in names:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = attempt(SOURCES[source]()[name](), list(FORMATS), SHAPES.get(name))
        except Exception as error:
            found = dict.fromkeys(FORMATS, nothing(f"can't be built: {reason(error)}"))
        append(file, (source, name), found)
        print(" | ".join(row((source, name), found)), flush=True)
        jax.clear_caches()


def append(file: Path, name: Name, found: dict[str, Found]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"source": name[0], "model": name[1], "formats": found}) + "\n")


def all_found(file: Path) -> dict[Name, dict[str, Found]]:
    """(source, model) -> format -> what was found last."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    entries = map(json.loads, lines)
    return {(entry["source"], entry["model"]): entry["formats"] for entry in entries}


def survey_all(names: Sequence[Name], file: Path, seconds: int) -> dict[Name, dict[str, Found]]:
    """Surveys models in another process, and in a new one if a model ended that."""
    while left := [name for name in names if name not in all_found(file)]:
        process = multiprocessing.get_context("spawn").Process(target=survey, args=(left, file, seconds))
        process.start()
        process.join()
        ended = [name for name in left if name not in all_found(file)]
        if ended:
            slow = process.exitcode == -signal.SIGPROF
            lacking = f"not done after {seconds} CPU s" if slow else f"process ended by {process.exitcode}"
            append(file, ended[0], dict.fromkeys(FORMATS, nothing(lacking)))
    return all_found(file)


def row(name: Name, formats: dict[str, Found]) -> tuple[str, ...]:
    """A model's line of the table."""
    cells, lacking = [], []
    for title in FORMATS:
        found = formats[title]
        cells += ["–" if found["error"] is None else f"{found['error']:.0e}", found["batch"]]
        lacking += [f"{title}: {found['lacking']}"] if found["lacking"] else []
    return (*name, *cells, "; ".join(lacking))


def summary(rows: Sequence[dict[str, Found]]) -> str:
    """How many models go through each format."""
    texts = []
    for title in FORMATS:
        counts = Counter(formats[title]["batch"] for formats in rows)
        errors = [f[title]["error"] for f in rows if f[title]["error"] is not None]
        texts.append(
            f"{title}: {counts['any']} of {len(rows)} at any batch size, {counts['fixed']} more at a fixed one, "
            f"largest error {max(errors, default=0.0):.0e}."
        )
    return " ".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", nargs="+", choices=SOURCES, default=["own"], dest="sources")
    parser.add_argument("--only", nargs="+", default=[""], help="models whose name contains one of these")
    parser.add_argument("--results", type=Path, default=Path("export_survey.jsonl"), help="what is found")
    parser.add_argument("--seconds", type=int, default=240, help="CPU time for a model")
    parser.add_argument("--markdown", type=Path, help="add the table to this file")
    options = parser.parse_args()
    names = [
        (source, name)
        for source in options.sources
        for name in SOURCES[source]()
        if any(part in name for part in options.only)
    ]
    found = survey_all(names, options.results, options.seconds)
    rows = [(name, found[name]) for name in names]
    note = f"{summary([formats for _, formats in rows])} {machine()}."
    show("Survey of export", HEADS, [row(*entry) for entry in rows], note, options.markdown)


if __name__ == "__main__":
    main()
