"""Which architectures go through jax.export and ONNX Runtime, and what the others lack?

Each model of `surgery_survey.py` is exported with a symbolic batch; where that is refused, with the batch of the
example ("fixed"). The errors are the largest ones relative to the largest output, also at another batch size.

    python benchmarks/export_survey.py --from own haiku flaxmodels equimo transformers --markdown benchmarks/export.md
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import surgery_survey_models as models
from surgery_measure import machine, show
from surgery_survey_sources import SOURCES

import jaxprune as jp

FORMATS = {"jax.export": ("stablehlo", ("stablehlo",)), "ONNX Runtime": ("onnx", ("onnx",))}


def attempt(make: models.Make, name: str, formats: tuple[str, ...]) -> tuple[str, str, str]:
    """(error, batch, why not) of a model in one format."""
    fn, params, inputs = make()
    why = ""
    for batch in ("b", None):
        folder = Path(tempfile.mkdtemp())
        try:
            done = jp.export(
                folder, fn, params, *inputs, batch=batch, formats=formats, constants=True, latency_batches=()
            )
            return f"{done.report['errors'][name]['relative']:.0e}", "any" if batch else "fixed", why
        except (ValueError, TypeError) as error:
            why = why or reason(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return "–", "none", why


def reason(error: Exception) -> str:
    """What is lacking, in few words."""
    text = str(error).replace("|", "/").replace("\n", " ")
    for before in (
        "can't be exported by jax.export: ",
        "can't be written as ONNX: ",
        "can't run the model: ",
    ):
        text = text.split(before)[-1]
    for after in (" If it is the sizes", " Otherwise leave out", " Leave ", " This error arises"):
        text = text.split(after)[0]
    return text[:160]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--from", nargs="+", choices=SOURCES, default=["own"], dest="sources")
    parser.add_argument("--only", nargs="+", default=[""], help="models whose name contains one of these")
    parser.add_argument("--markdown", type=Path, help="add the tables to this file")
    options = parser.parse_args()
    counts = {title: {"any": 0, "fixed": 0, "none": 0} for title in FORMATS}
    for source in options.sources:
        rows = []
        for name, make in SOURCES[source]().items():
            if not any(part in name for part in options.only):
                continue
            cells: list[str] = []
            try:
                make()
            except Exception as error:
                print(f"{name}: can't be built: {error!r}", flush=True)
                continue
            reasons = []
            for title, (key, formats) in FORMATS.items():
                error, batch, why = attempt(make, key, formats)
                counts[title][batch] += 1
                cells += [error, batch]
                if why:
                    reasons.append(f"{title}: {why}")
            print(f"{name}: {' | '.join([*cells, *reasons])}", flush=True)
            rows.append((name, *cells, "; ".join(reasons)))
        heads = ("model", "jax.export", "batch", "ONNX Runtime", "batch", "what is lacking")
        show(f"Models of {source}", heads, rows, f"{len(rows)} models. {machine()}.", options.markdown)
    for title, count in counts.items():
        total = sum(count.values())
        print(f"{title}: {count['any']} of {total} at any batch, {count['fixed']} more at a fixed one")


if __name__ == "__main__":
    main()
