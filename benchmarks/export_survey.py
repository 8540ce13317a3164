"""Which architectures go through jax.export and ONNX Runtime, and what do the others lack?

Each model of `surgery_survey.py` is exported with a symbolic batch; where that is refused, with the batch of the
example ("fixed"). The errors are the largest ones relative to the largest output, also at another batch size. Each
model has a process of its own, which is ended after `--seconds` of CPU time; what is found is added to a file line by line, and a
later run goes on from there.

    python benchmarks/export_survey.py --from own haiku flaxmodels equimo transformers --results FILE.jsonl \
        --markdown benchmarks/export.md
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from surgery_measure import machine, show
from surgery_survey_sources import SOURCES

import jaxprune as jp

FORMATS = {"jax.export": "stablehlo", "ONNX Runtime": "onnx"}
HEADS = ("source", "model", "jax.export", "batch", "ONNX Runtime", "batch", "what is lacking")
TOLERANCE = 1e-5
BEFORE = ("can't be exported by jax.export: ", "can't be written as ONNX: ", "can't run the model: ")
AFTER = (" If it is the sizes", " Otherwise leave out", " Leave ", " This error arises", " See https")

Found = dict[str, Any]  # source, model, format, error, batch and what is lacking


def attempt(fn: Callable, params: Any, inputs: tuple[Any, ...], name: str) -> Found:
    """Error, batch and what is lacking of a model in one format."""
    lacking = ""
    for batch in ("b", None):
        folder = Path(tempfile.mkdtemp())
        try:
            done = jp.export(
                folder,
                fn,
                params,
                *inputs,
                batch=batch,
                formats=(name,),
                constants=True,
                latency_batches=(),
                tolerance=TOLERANCE,
            )
            error = done.report["errors"][name]["relative"]
            return {"error": error, "batch": "any" if batch else "fixed", "lacking": lacking}
        except (ValueError, TypeError) as problem:
            lacking = lacking or reason(problem)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return {"error": None, "batch": "none", "lacking": lacking}


def reason(error: Exception) -> str:
    """What is lacking, in few words."""
    text = str(error).replace("|", "/").replace("\n", " ")
    for before in BEFORE:
        text = text.split(before)[-1]
    for after in AFTER:
        text = text.split(after)[0]
    return text[:200]


def one_model(source: str, name: str, file: Path, seconds: int) -> None:
    """Surveys a model in this process, which ends after so many seconds of CPU time."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    model = SOURCES[source]()[name]()
    for title, key in FORMATS.items():
        append(file, source=source, model=name, format=title, **attempt(*model, key))


def append(file: Path, **found: Any) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(found) + "\n")


def all_found(file: Path) -> dict[tuple[str, str], dict[str, Found]]:
    """(source, model) -> format -> what was found last."""
    found: dict[tuple[str, str], dict[str, Found]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        entry = json.loads(line)
        found.setdefault((entry["source"], entry["model"]), {})[entry["format"]] = entry
    return found


def survey(source: str, name: str, file: Path, seconds: int) -> None:
    """Surveys a model in a new process; a format that it does not come to is lacking too."""
    limit = ["--results", str(file), "--seconds", str(seconds)]
    command = [sys.executable, __file__, "--one", source, name, *limit]
    process = subprocess.run(command, capture_output=True, text=True)
    lines = process.stderr.strip().splitlines() or [""]
    lacking = f"the process ended with {process.returncode} {lines[-1][:160]}".replace("|", "/")
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        lacking = f"not done after {seconds} CPU s"
    for title in FORMATS:
        if title not in all_found(file).get((source, name), {}):
            nothing = {"error": None, "batch": "none", "lacking": lacking}
            append(file, source=source, model=name, format=title, **nothing)


def row(name: tuple[str, str], formats: dict[str, Found]) -> tuple[str, ...]:
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
    parser.add_argument("--one", nargs=2, metavar=("SOURCE", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_model(*options.one, options.results, options.seconds)
        return
    rows = []
    for source in options.sources:
        for name in SOURCES[source]():
            if any(part in name for part in options.only):
                if len(all_found(options.results).get((source, name), {})) < len(FORMATS):
                    survey(source, name, options.results, options.seconds)
                rows.append(((source, name), all_found(options.results)[source, name]))
                print(" | ".join(row(*rows[-1])), flush=True)
    note = f"{summary([formats for _, formats in rows])} {machine()}."
    show("Survey of export", HEADS, [row(*entry) for entry in rows], note, options.markdown)


if __name__ == "__main__":
    main()
