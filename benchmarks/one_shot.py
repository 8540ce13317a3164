"""One-shot pruning of pretrained models with calibration data: metric, layer error, time and memory.

python benchmarks/one_shot.py smollm2 --data DATA --results one_shot.json     # runs what is not there yet
python benchmarks/one_shot.py smollm2 --results one_shot.json --table         # prints the table

DATA holds text/wikitext-2-valid.txt (WikiText-2, word-tokenised, as in pytorch/examples) and text/tinyshakespeare.txt
for smollm2: the first half of one of them calibrates (`--calibration`), the second halves of both measure perplexity;
and stsb/stsb-en-{train,dev}.csv (PhilipMay/stsb-multi-mt) for minilm: train sentences calibrate, Spearman's
correlation on dev is measured. The models come from packages, see `models/`. Every run is a process of its own and
adds its line to the results. "one_shot, ..." are the presets of `jp.one_shot`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxprune as jp

PATTERNS: dict[str, tuple[float, Any]] = {
    "50%": (0.5, jp.Unstructured()),
    "60%": (0.6, jp.Unstructured()),
    "70%": (0.7, jp.Unstructured()),
}
PATTERNS["2:4"] = (0.5, jp.NM(2, 4))


TEXTS = {"wikitext": "wikitext-2-valid.txt", "shakespeare": "tinyshakespeare.txt"}


class Recipe(NamedTuple):
    """What is handed to `jp.reconstruct`, and how the sparsity is shared out over the matrices."""

    method: Any
    refine: tuple[Any, ...] = ()
    dense_targets: float = 0.0
    allocation: str = "uniform"
    permute: bool = False  # units are reordered before a pattern prunes them
    with_errors: bool = True  # layer errors ask for X^T X, which Wanda itself does without
    quality: Any = None  # that of `jp.one_shot`, which picks all of this itself


_LONG = jp.ADMM(rounds=40, ramp=30, damping=0.01)
_LEAST_SQUARES = (jp.LeastSquares(10),)
RECIPES = {
    "magnitude": Recipe(jp.MaskOnly("magnitude")),
    "wanda": Recipe(jp.MaskOnly("wanda")),
    "wanda, no errors": Recipe(jp.MaskOnly("wanda"), with_errors=False),
    "ria": Recipe(jp.MaskOnly("ria")),
    "sparsegpt": Recipe(jp.SparseGPT()),
    "sparsegpt, permuted": Recipe(jp.SparseGPT(), permute=True),
    "admm": Recipe(jp.ADMM()),
    "wanda+swaps": Recipe(jp.MaskOnly("wanda"), (jp.Swaps(dense_values=True),)),
    "admm+swaps+ls": Recipe(jp.ADMM(), (jp.Swaps(), jp.LeastSquares())),
    "admm long": Recipe(_LONG, _LEAST_SQUARES),
    "admm long+targets": Recipe(_LONG, _LEAST_SQUARES, dense_targets=0.5),
    "admm long+targets, permuted": Recipe(_LONG, _LEAST_SQUARES, dense_targets=0.5, permute=True),
    "sparsegpt, owl": Recipe(jp.SparseGPT(), allocation="owl"),
    "sparsegpt, fisher": Recipe(jp.SparseGPT(), allocation="fisher"),
    "admm long, fisher": Recipe(_LONG, _LEAST_SQUARES, allocation="fisher"),
    "admm long+targets, fisher": Recipe(_LONG, _LEAST_SQUARES, dense_targets=0.5, allocation="fisher"),
    "sparsegpt+refit": Recipe(jp.SparseGPT(), (jp.Refit(dense_targets=1.0),)),
    "one_shot, fast": Recipe(None, quality="fast"),
    "one_shot, good": Recipe(None, quality="good"),
    "one_shot, best": Recipe(None, quality="best"),
    "one_shot, best, permuted": Recipe(None, quality="best", permute=True),
}


class Task(NamedTuple):
    """A model with what calibrates and what measures it."""

    fn: Callable[..., Any]
    params: Any
    where: Any
    batches: list[Any]
    row_weights: Any
    measure: Callable[[Any], dict[str, float]]  # "metric", and what else is measured
    fisher: Callable[[], Any]  # scores of the weights to prune: how much the loss minds
    layer: Callable[[str], str]  # the block that a path belongs to
    groups: Callable[[], Any]  # groups of the whole model, for its units in another order
    loss: Any = None  # of the inputs of a batch


def smollm2(
    data: Path, calibration: str, sequences: int = 64, evaluated: int = 24, length: int = 512, batch: int = 8
) -> Task:
    """SmolLM2-135M: 210 matrices, perplexity on WikiText-2 and on the other text."""
    from models import smollm2 as model

    params, tokenizer = model.load()

    def half(name: str, second: bool, count: int) -> Any:
        text = (data / "text" / TEXTS[name]).read_text()
        middle = text.index("\n", len(text) // 2)
        return model.sequences(tokenizer, text[middle:] if second else text[:middle], count, length)

    first = half(calibration, False, sequences)
    held_out = {name: half(name, True, evaluated) for name in TEXTS}
    where = jp.prunable(params, include="blocks/.*/(q|k|v|o|gate|up|down)")
    batches = [first[i : i + batch] for i in range(0, sequences, batch)]

    def fisher() -> Any:
        def loss(blocks: Any, tokens: Any) -> Any:
            return model.nll({**params, "blocks": blocks}, tokens)

        scores = jp.scores.fisher(loss, params["blocks"], first[:: max(sequences // 22, 1)], chunk=1)
        return {**params, "blocks": scores}

    def measure(params: Any) -> dict[str, float]:
        wikitext, other = (model.perplexity(params, each) for each in held_out.values())
        return {"metric": wikitext, "other_text": other}

    def groups() -> Any:
        return jp.find_groups(model.nll, params, batches[0])  # its output leaves the residual stream free

    return Task(model.hidden, params, where, batches, None, measure, fisher, _block, groups, model.nll)


def minilm(data: Path, calibration: str, sequences: int = 512, length: int = 32) -> Task:
    """all-MiniLM-L6-v2: 36 matrices, Spearman's correlation on STS-B."""
    from models import minilm as model
    from models import stsb

    if calibration != "wikitext":
        raise SystemExit("minilm is calibrated on sentences of STS-B only")
    params, tokenizer = model.load(), model.tokenizer()
    batches: list[Any] = list(stsb.calibration(data / "stsb", tokenizer, sequences, length))
    where = jp.prunable(params, include="layers/.*/kernel")
    dev = stsb.read(data / "stsb", "dev")
    embed = jax.jit(model.embed)

    def measure(params: Any) -> dict[str, float]:
        return {"metric": stsb.spearman(lambda ids, mask: embed(params, ids, mask), tokenizer, dev)}

    def fisher() -> Any:
        """Of the embedding under noise of unit variance: no labels are asked for."""

        def loss(layers: Any, sample: Any) -> Any:
            ids, mask, noise = sample
            return jax.numpy.mean(noise * model.embed({**params, "layers": layers}, ids, mask))

        ids, mask = (jax.numpy.concatenate(parts) for parts in zip(*batches, strict=True))
        noise = jax.random.normal(jax.random.key(0), (len(ids), 384))
        return {**params, "layers": jp.scores.fisher(loss, params["layers"], (ids, mask, noise))}

    def groups() -> Any:
        return jp.find_groups(model.embed, params, *batches[0])

    return Task(model.embed, params, where, batches, lambda ids, mask: mask, measure, fisher, _block, groups)


def _block(path: str) -> str:
    """`blocks/3` of `blocks/3/q`."""
    return "/".join(path.split("/")[:2])


def allocated(task: Task, sparsity: float, allocation: str) -> tuple[Any, Any]:
    """What `reconstruct` takes as `sparsity` and as `fisher`."""
    if allocation == "owl":
        stats = jp.calibrate(
            task.fn, task.params, task.batches, where=task.where, row_weights=task.row_weights
        )
        scores = jp.scores.wanda(task.params, stats, per_output=False)
        return jp.allocate.owl(scores, sparsity, where=task.where, layer=task.layer), None
    if allocation == "fisher":
        scores = task.fisher()
        return jp.allocate.from_scores(scores, sparsity, where=task.where, minimum=0.05), scores
    return sparsity, None


TASKS = {"smollm2": smollm2, "minilm": minilm}


@functools.cache
def _task(name: str, data: Path, calibration: str, sequences: int | None) -> Task:
    return TASKS[name](data, calibration, **({} if sequences is None else {"sequences": sequences}))


def run(
    task_name: str, data: Path, calibration: str, name: str, pattern: str, sequences: int | None
) -> dict[str, Any]:
    """Prunes and measures once."""
    task = _task(task_name, data, calibration, sequences)
    log = jp.LayerLog()
    params, masks = task.params, None
    wall, cpu = time.perf_counter(), time.process_time()
    if name != "dense":
        sparsity, structure = PATTERNS[pattern]
        params, masks = pruned(task, RECIPES[name], sparsity, structure, log)
        jax.block_until_ready(params)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    errors = [row.error for row in log.layers]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "model": task_name,
        "method": name,
        "pattern": pattern,
        "calibration": calibration,
        **task.measure(params),
        "sparsity": jp.sparsity(params, masks) if masks is not None else 0.0,
        "layer_error": float(np.mean(errors)) if errors else 0.0,
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_gib": memory,
    }


def pruned(task: Task, recipe: Recipe, sparsity: float, structure: Any, log: jp.LayerLog) -> tuple[Any, Any]:
    """The pruned parameters and masks."""
    both = {
        "where": task.where,
        "permute": task.groups() if recipe.permute else None,
        "row_weights": task.row_weights,
        "on_layer": log if recipe.with_errors else None,
    }
    if recipe.quality is not None:
        return jp.one_shot(
            task.fn,
            task.params,
            task.batches,
            sparsity,
            recipe.quality,
            structure=structure,
            loss_fn=task.loss,
            **both,
        )
    shares, fisher = allocated(task, sparsity, recipe.allocation)
    return jp.reconstruct(
        task.fn,
        task.params,
        task.batches,
        shares,
        structure,
        recipe.method,
        refine=recipe.refine,
        fisher=fisher,
        dense_targets=recipe.dense_targets,
        **both,
    )


def run_alone(
    task: str, data: Path, calibration: str, name: str, pattern: str, sequences: int | None
) -> dict[str, Any]:
    """`run` in a process of its own."""
    command = [sys.executable, __file__, task, "--data", str(data), "--here", "--calibration", calibration]
    command += ["--methods", name, "--patterns", pattern]
    command += [] if sequences is None else ["--sequences", str(sequences)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, a line a run, the metric as a ratio to SparseGPT's too."""

    def column(r: dict[str, Any]) -> tuple[str, str, str]:
        return r["model"], r["calibration"], r["pattern"]

    base = {column(r): r for r in results if r["method"] == "sparsegpt"}
    lines = [
        "| model | calibration | pattern | method | metric | / SparseGPT | other text | / SparseGPT | layer error "
        "| wall s | CPU s | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in sorted(results, key=lambda r: (*column(r), -r["metric"])):
        cells = []
        for key in ("metric", "other_text"):
            reference = base.get(column(r), {}).get(key)
            cells.append(f"{r[key]:.4g}" if key in r else "")
            cells.append(f"{r[key] / reference:.3f}" if reference else "")
        lines.append(
            f"| {r['model']} | {r['calibration']} | {r['pattern']} | {r['method']} | {' | '.join(cells)} "
            f"| {r['layer_error']:.4f} | {r['wall_s']:.0f} | {r['cpu_s']:.0f} | {r['peak_gib']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", choices=sorted(TASKS))
    parser.add_argument("--data", type=Path, default=os.environ.get("JAXPRUNE_DATA"), help="data folder")
    parser.add_argument("--results", type=Path, default=Path("one_shot.json"))
    parser.add_argument("--methods", nargs="*", default=["dense", *RECIPES], choices=["dense", *RECIPES])
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS), choices=list(PATTERNS))
    parser.add_argument("--calibration", choices=list(TEXTS), default="wikitext", help="text for smollm2")
    parser.add_argument("--sequences", type=int, help="calibration sequences, for quick looks")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")
    parser.add_argument("--here", action="store_true", help="run one in this process and print its line")
    parser.add_argument(
        "--together",
        action="store_true",
        help="run all in this process: quicker, but times leave out what was compiled and memory is the peak of all",
    )
    args = parser.parse_args()
    if not args.table and args.data is None:
        parser.error("--data (or the environment variable JAXPRUNE_DATA) must name the data folder.")
    if args.here:
        name, pattern = args.methods[0], args.patterns[0]
        print(json.dumps(run(args.model, Path(args.data), args.calibration, name, pattern, args.sequences)))
        return
    results = json.loads(args.results.read_text()) if args.results.exists() else []
    for pattern in [] if args.table else args.patterns:
        for name in args.methods:
            if pattern == "2:4" and name != "dense" and RECIPES[name].allocation != "uniform":
                continue  # a pattern prunes every matrix alike
            if pattern != "2:4" and name != "dense" and RECIPES[name].permute:
                continue  # only a pattern depends on the order
            at = "" if name == "dense" else pattern
            key = args.model, args.calibration, name, at
            if any((r["model"], r["calibration"], r["method"], r["pattern"]) == key for r in results):
                continue
            by = run if args.together else run_alone
            line = by(args.model, Path(args.data), args.calibration, name, pattern, args.sequences)
            results.append({**line, "pattern": at})
            args.results.write_text(json.dumps(results, indent=1))
            print(json.dumps(results[-1]), flush=True)
    print(table([r for r in results if r["model"] == args.model]))


if __name__ == "__main__":
    main()
