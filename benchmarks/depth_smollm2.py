"""SmolLM2-135M without some of its layers: which scores choose best, and do the FLOPs arrive as latency?

Whole blocks are left out ("blocks"), or attention and MLP apart ("parts"), to the same share of the layers'
parameters. All scores are measured on the same tokens of the first half of WikiText-2 valid, perplexity on its
second half. Nothing is trained.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from models import smollm2 as model
from surgery_measure import count, jitted, machine, shortest, show

import jaxprune as jp
from jaxprune import surgery

REFERENCE = "block influence"
SHARES = (0.1, 0.2, 0.3)  # of the parameters of all blocks
CANDIDATES, STEPS = (
    20,
    12,
)  # parts that greedy considers, and those it removes before the others follow in order
ON_PARTS = (REFERENCE, "loss increase", "greedy")  # the scores by which parts are left out


class Setting(NamedTuple):
    """Sequences of `length` tokens that calibrate and measure, and the shares to leave out."""

    calibrated: int = 4
    evaluated: int = 24
    length: int = 512
    shares: tuple[float, ...] = SHARES


QUICK = Setting(2, 2, 32, (0.1,))


class Data(NamedTuple):
    """The model, its branches and the tokens."""

    params: Any
    branches: Any
    calibration: list[jax.Array]
    evaluation: jax.Array


class Cell(NamedTuple):
    """One choice of layers."""

    score: str
    level: str
    share: float


def load(data: Path, setting: Setting) -> Data:
    """Calibration sequences are spread over the first half, one a batch."""
    params, tokenizer = model.load()
    text = (data / "text" / "wikitext-2-valid.txt").read_text()
    middle = text.index("\n", len(text) // 2)
    first = model.sequences(tokenizer, text[:middle], 64, setting.length)
    second = model.sequences(tokenizer, text[middle:], setting.evaluated, setting.length)
    calibration = [first[i : i + 1] for i in range(0, 64, 64 // setting.calibrated)]
    branches = jp.find_branches(model.hidden, params, calibration[0])
    return Data(params, branches, calibration, second)


class Results:
    """Scores and cells, in a file that is written after each of them."""

    def __init__(self, file: Path | None):
        self._file = file
        there = file is not None and file.exists()
        self._found: dict[str, Any] = json.loads(file.read_text()) if there else {}

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """What is in the file under a key, computed if it isn't there, and the CPU seconds that took."""
        if key not in self._found:
            start = time.process_time()
            value = compute()
            self._found[key] = {"value": value, "cpu_s": time.process_time() - start}
            print(f"  {key}: {self._found[key]['cpu_s']:.0f} CPU s", flush=True)
            if self._file is not None:
                self._file.write_text(json.dumps(self._found, indent=1))
        return self._found[key]["value"], self._found[key]["cpu_s"]


def scorings(data: Data, level: str, found: Results, most: int) -> dict[str, Callable[[], dict[str, float]]]:
    """Name -> what computes the scores of a level; only greedy depends on it.

    Of the parts, greedy considers those with the lowest rise of the loss per parameter alone.
    """
    params, branches, batches, _ = data

    def greedy() -> dict[str, float]:
        kept: list[str] = []
        if level == "parts":
            rises, _ = found.once("loss increase", scorings(data, level, found, most)["loss increase"])
            order = sorted(branches.at("parts"), key=lambda part: rises[part.name] / part.size)
            kept = [part.name for part in order[CANDIDATES:]]
        return surgery.greedy_loss_increase(
            branches,
            model.nll,
            params,
            batches,
            number=most if level == "blocks" else STEPS,
            level=level,
            budget="branches" if level == "blocks" else "params",
            exclude=kept,
        )

    return {
        REFERENCE: lambda: surgery.block_influence(branches, params, batches),
        "loss increase": lambda: surgery.loss_increase(branches, model.nll, params, batches),
        "greedy": greedy,
        "Taylor": lambda: surgery.branch_taylor(branches, model.nll, params, batches),
        "norms": lambda: surgery.branch_norms(branches, params),
        "random": lambda: surgery.random_branches(branches, jax.random.key(0)),
    }


def chosen(data: Data, cell: Cell, score: dict[str, float]) -> Any:
    """The plan of a cell: the whole number of blocks nearest to the share, or parts until it is met."""
    branches = data.branches
    if cell.level == "blocks":
        number = round(cell.share * len(branches.at("blocks")))
        return jp.plan_layers(branches, data.params, number=number, score=score, level="blocks")
    of_blocks = sum(block.size for block in branches.at("blocks"))
    if cell.score == "loss increase":
        score = {branch.name: score[branch.name] / branch.size for branch in branches}
    return jp.plan_layers(branches, data.params, cell.share * of_blocks / branches.size, score)


def perplexity(fn: Callable, params: Any, tokens: jax.Array, batch: int = 4) -> float:
    compiled = jax.jit(fn)
    return float(
        np.exp(np.mean([compiled(params, tokens[i : i + batch]) for i in range(0, len(tokens), batch)]))
    )


def prefill(params: Any, tokens: jax.Array) -> jax.Array:
    """Logits of the token that follows a prompt."""
    return model.hidden(params, tokens)[:, -1] @ params["embedding"].T


def smollm2(folder: Path, results: Path | None, quick: bool, markdown: Path | None) -> None:
    setting = QUICK if quick else Setting()
    data, found = load(folder, setting), Results(results)
    of_blocks = sum(block.size for block in data.branches.at("blocks"))
    dense, _ = found.once("dense", lambda: perplexity(model.nll, data.params, data.evaluation))
    table: dict[Cell, tuple[float, Any, float]] = {}
    for name in scorings(data, "blocks", 1):
        for level in ("blocks", "parts"):
            most = round(max(setting.shares) * len(data.branches.at("blocks"))) * (
                1 if level == "blocks" else 2
            )
            compute = scorings(data, level, most)[name]
            score, seconds = found.once(f"{name}, {level}" if name == "greedy" else name, compute)
            for share in setting.shares:
                cell = Cell(name, level, share)
                plan = chosen(data, cell, score)
                fn, small = plan.compact(model.nll), plan.shrink(data.params)
                measure = functools.partial(perplexity, fn, small, data.evaluation)
                table[cell] = found.once(f"{name}, {level}, {share:.0%}", measure)[0], plan, seconds
    heads = ("layers by", "left out", *(f"{share:.0%}" for share in setting.shares), "CPU s")
    rows = []
    for name, level in dict.fromkeys(cell[:2] for cell in table):
        cells = [table[Cell(name, level, share)] for share in setting.shares]
        base = [table[Cell(REFERENCE, "blocks", share)][0] for share in setting.shares]
        ratios = [f"{ppl:.1f} ({ppl / of:.2f})" for (ppl, _, _), of in zip(cells, base, strict=True)]
        rows.append((name, level, *ratios, f"{cells[0][2]:.0f}"))
    note = (
        f"Perplexity on {setting.evaluated} x {setting.length} tokens, dense {dense:.2f}; in brackets the ratio to "
        f"block influence on whole blocks. Scores from {setting.calibrated} x {setting.length} tokens; CPU s: to "
        f"score, compilation included. The blocks have {of_blocks / 1e6:.1f} M of "
        f"{count(data.params) / 1e6:.1f} M parameters. {machine()}."
    )
    show("SmolLM2-135M without layers, WikiText-2", heads, rows, note, markdown)
    share = setting.shares[len(setting.shares) // 2]
    plans = {
        cell: plan for cell, (_, plan, _) in table.items() if cell.share == share and cell.score == "greedy"
    }
    latency(data, plans, setting, markdown)


def latency(data: Data, plans: dict[Cell, Any], setting: Setting, markdown: Path | None) -> None:
    """What share of the FLOPs that a plan saves arrives as time."""
    tokens = data.evaluation[:1]
    whole = jp.find_branches(prefill, data.params, tokens)
    runs = {"all": jitted(prefill, data.params, tokens)}
    for cell, plan in plans.items():
        runs[cell.level] = jitted(plan.compact(prefill), plan.shrink(data.params), tokens)
    times = shortest(runs, rounds=2 if setting is QUICK else 12, seconds=1.0)
    rows = [("nothing", f"{whole.flops / 1e9:.1f}", f"{times['all'] * 1e3:.0f}", "", "", "")]
    for cell, plan in plans.items():
        saved = whole.removed(plan.removed).flops / whole.flops
        faster = 1 - times[cell.level] / times["all"]
        rows.append(
            (
                f"{cell.share:.0%} of the {cell.level}, {cell.score}",
                f"{whole.flops * (1 - saved) / 1e9:.1f}",
                f"{times[cell.level] * 1e3:.0f}",
                f"{saved:.1%}",
                f"{faster:.1%}",
                f"{faster / saved:.2f}",
            )
        )
    heads = ("left out", "GFLOPs", "prefill, ms", "FLOPs saved", "time saved", "time / FLOPs saved")
    note = f"Prefill of 1 x {setting.length} tokens, shortest, all by turns. {machine()}."
    show("Latency of SmolLM2-135M without layers", heads, rows, note, markdown)
