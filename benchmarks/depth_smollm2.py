"""SmolLM2-135M without some of its layers: which scores choose best, and do the FLOPs arrive as latency?

Whole blocks are left out ("blocks"), or attention and MLP apart ("parts"), to the same share of the layers'
parameters. All scores are measured on the same tokens of the first half of WikiText-2 valid, perplexity on its
second half. Nothing is trained.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from models import smollm2 as model
from surgery_measure import count, jitted, machine, shortest, show

import jaxprune as jp
from jaxprune import surgery

REFERENCE = "block influence"
SHARES = (0.1, 0.2, 0.3)  # of the parameters of all blocks
CANDIDATES, STEPS = (
    16,
    10,
)  # parts that greedy considers, and those it removes before the others follow in order
SCORES = (REFERENCE, "loss increase", "greedy", "Taylor", "norms", "random")
MAPPED = (REFERENCE, "greedy")  # the scores whose layers linear maps stand in for, too

Level = Literal["blocks", "parts"]


class Setting(NamedTuple):
    """Sequences of `length` tokens for the scores, the maps and the perplexity, and the shares to leave out."""

    calibrated: int = 4
    fitted: int = 32
    evaluated: int = 24
    length: int = 512
    shares: tuple[float, ...] = SHARES


QUICK = Setting(2, 2, 2, 32, (0.1,))


class Data(NamedTuple):
    """The model, its branches and the tokens."""

    params: Any
    branches: Any
    calibration: list[jax.Array]
    fitting: list[jax.Array]
    evaluation: jax.Array


class Cell(NamedTuple):
    """One choice of layers; mapped: whether linear maps stand in for them."""

    score: str
    level: Level
    share: float
    mapped: bool = False


def load(data: Path, setting: Setting) -> Data:
    """Sequences of the first half are spread over it, one a batch."""
    params, tokenizer = model.load()
    text = (data / "text" / "wikitext-2-valid.txt").read_text()
    middle = text.index("\n", len(text) // 2)
    first = model.sequences(tokenizer, text[:middle], 64, setting.length)
    second = model.sequences(tokenizer, text[middle:], setting.evaluated, setting.length)
    calibration, fitting = (
        [first[i : i + 1] for i in range(0, 64, 64 // number)]
        for number in (setting.calibrated, setting.fitted)
    )
    branches = jp.find_branches(model.hidden, params, calibration[0])
    return Data(params, branches, calibration, fitting, second)


class Results:
    """Scores and cells, in a file that is written after each of them."""

    def __init__(self, file: Path | None):
        self._file = file
        self._found: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}

    def has(self, key: str) -> bool:
        """Whether it is in the file."""
        return key in self._found

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


def scorings(data: Data, level: Level, found: Results) -> dict[str, Callable[[], dict[str, float]]]:
    """Name -> what computes the scores of a level; only greedy depends on it.

    Of the parts, greedy considers those with the lowest rise of the loss per parameter alone.
    """
    params, branches, batches = data[:3]

    def greedy() -> dict[str, float]:
        kept: list[str] = []
        if level == "parts":
            rises, _ = found.once("loss increase", scorings(data, level, found)["loss increase"])
            order = sorted(branches.at("parts"), key=lambda part: rises[part.name] / part.size)
            kept = [part.name for part in order[CANDIDATES:]]
        return surgery.greedy_loss_increase(
            branches,
            model.nll,
            params,
            batches,
            number=round(max(SHARES) * len(branches.at("blocks"))) if level == "blocks" else STEPS,
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


def cells(shares: Iterable[float], first: float) -> list[Cell]:
    """All cells in the order of work: blocks, then parts, then what greedy leaves out of these."""
    of_blocks, of_parts, of_greedy = [], [], []
    for share in sorted(shares, key=lambda share: share != first):
        of_blocks += [Cell(score, "blocks", share) for score in SCORES]
        of_blocks += [Cell(score, "blocks", share, mapped=True) for score in MAPPED]
        of_parts += [Cell(score, "parts", share) for score in (REFERENCE, "loss increase")]
        of_greedy += [Cell("greedy", "parts", share, mapped) for mapped in (False, True)]
    return [*of_blocks, *of_parts, *of_greedy]


def measured(data: Data, plan: Any, mapped: bool) -> float:
    """Perplexity of the small function."""
    params = data.params
    if mapped:
        replaced = jp.replace_layers(data.branches, plan, params, data.fitting)
        print(replaced, flush=True)
        params = replaced.params
    return perplexity(plan.compact(model.nll), plan.shrink(params), data.evaluation)


def perplexity(fn: Callable, params: Any, tokens: jax.Array, batch: int = 4) -> float:
    compiled = jax.jit(fn)
    return float(
        np.exp(np.mean([compiled(params, tokens[i : i + batch]) for i in range(0, len(tokens), batch)]))
    )


def prefill(params: Any, tokens: jax.Array) -> jax.Array:
    """Logits of the token that follows a prompt."""
    return model.hidden(params, tokens)[:, -1] @ params["embedding"].T


def smollm2(folder: Path, results: Path | None, quick: bool, only_table: bool, markdown: Path | None) -> None:
    setting = QUICK if quick else Setting()
    data, found = load(folder, setting), Results(results)
    of_blocks = sum(block.size for block in data.branches.at("blocks"))
    dense, _ = found.once("dense", lambda: perplexity(model.nll, data.params, data.evaluation))
    middle = sorted(setting.shares)[len(setting.shares) // 2]
    table: dict[Cell, float] = {}
    plans: dict[Cell, Any] = {}
    seconds: dict[str, float] = {}
    for cell in cells(setting.shares, middle):
        of_score = f"{cell.score}, {cell.level}" if cell.score == "greedy" else cell.score
        name = ", ".join(map(str, cell))
        if only_table and not (found.has(of_score) and found.has(name)):
            continue
        score, seconds[of_score] = found.once(of_score, scorings(data, cell.level, found)[cell.score])
        plan = plans[cell] = chosen(data, cell, score)
        table[cell], _ = found.once(name, functools.partial(measured, data, plan, cell.mapped))
    heads = ("layers by", "left out", *(f"{share:.0%}" for share in setting.shares), "CPU s")
    rows = []
    for cell in cells((middle,), middle):
        row = [table.get(cell._replace(share=share)) for share in setting.shares]
        base = [table.get(Cell(REFERENCE, "blocks", share)) for share in setting.shares]
        ratios = [f"{x:.1f} ({x / of:.2f})" if x and of else "" for x, of in zip(row, base, strict=True)]
        spent = seconds.get(f"{cell.score}, {cell.level}" if cell.score == "greedy" else cell.score, 0.0)
        if any(ratios):
            rows.append((cell.score + ", maps" * cell.mapped, cell.level, *ratios, f"{spent:.0f}"))
    note = (
        f"Perplexity on {setting.evaluated} x {setting.length} tokens, dense {dense:.2f}; in brackets the ratio to "
        f"block influence on whole blocks. Scores from {setting.calibrated} x {setting.length} tokens; CPU s: to "
        f"score, compilation included. Maps: `jp.replace_layers` on {setting.fitted} x {setting.length} tokens. "
        f"The blocks have {of_blocks / 1e6:.1f} M of "
        f"{count(data.params) / 1e6:.1f} M parameters. {machine()}."
    )
    show("SmolLM2-135M without layers, WikiText-2", heads, rows, note, markdown)
    latency(
        data,
        {cell: plans[cell] for cell in plans if cell[::2] == ("greedy", middle) and not cell.mapped},
        setting,
        markdown,
    )


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
