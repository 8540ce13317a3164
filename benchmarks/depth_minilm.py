"""MiniLM without some of its layers: which score chooses best, and depth against width at equal parameters.

Without training: the labels of STS-B train serve the scores "pairs", the others see sentences alone. Quality is
Spearman's correlation on STS-B dev.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from models import minilm as model
from models import stsb
from surgery_measure import count, machine, show

import jaxprune as jp
from jaxprune import surgery

LENGTH = 32  # tokens of a sentence; longer ones are cut
UNPADDED = 16  # tokens of the sentences for block influence, in which no padding counts
SHARE = 0.25  # of the encoder's parameters, for depth against width
ON_PARTS = (
    "block influence",
    "loss increase, drift",
    "greedy, drift",
)  # the scores by which parts are left out
WIDTHS = (model.HEADS, model.HIDDEN)


def drift(params: Any, batch: Any) -> jax.Array:
    """Mean of 1 - cosine to the dense model's embeddings: a loss without labels."""
    ids, mask, dense = batch
    return 1 - (model.embed(params, ids, mask) * dense).sum(-1).mean()


def pairs(params: Any, batch: Any) -> jax.Array:
    """Mean squared difference between cosine and similarity, both sentences of all pairs in one batch."""
    ids, mask, score = batch
    first, second = jnp.split(model.embed(params, ids, mask), 2)
    return jnp.square((first * second).sum(-1) - score).mean()


def labelled(using: Any, train: stsb.Pairs, number: int, size: int = 32) -> list[Any]:
    """Batches of pairs drawn at random: tokens of the first sentences, then of the second, and similarities."""
    drawn = np.random.default_rng(0).permutation(len(train.score))[: number * size].reshape(number, size)
    out = []
    for chosen in drawn:
        sentences = [which[i] for which in (train.first, train.second) for i in chosen]
        out.append((*model.tokenize(using, sentences, LENGTH), train.score[chosen] / 5))
    return out


def unpadded(using: Any, train: stsb.Pairs, size: int = 32) -> list[Any]:
    fitting = [s for s in dict.fromkeys(train.first) if len(using.encode(s).ids) == UNPADDED]
    ids, mask = model.tokenize(using, fitting[: len(fitting) // size * size], UNPADDED)
    return list(zip(ids.reshape(-1, size, UNPADDED), mask.reshape(-1, size, UNPADDED), strict=True))


class Bench:
    """The model, what calibrates it and what measures it."""

    def __init__(self, folder: Path, quick: bool):
        self.params, self.using = model.load(), model.tokenizer()
        train, self.dev = stsb.read(folder / "stsb", "train"), stsb.read(folder / "stsb", "dev")
        if quick:
            self.dev = stsb.Pairs(self.dev.first[:100], self.dev.second[:100], self.dev.score[:100])
        self.batches = stsb.calibration(folder / "stsb", self.using, 128 if quick else 512, LENGTH)
        self.labelled = labelled(self.using, train, 2 if quick else 4)
        self.unpadded = unpadded(self.using, train)[: 2 if quick else None]
        embed = jax.jit(model.embed)
        self.drift = [(ids, mask, embed(self.params, ids, mask)) for ids, mask in self.batches[:4]]
        self.branches = jp.find_branches(model.embed, self.params, *self.batches[0])
        self.encoder = count(self.params["layers"])
        self._scores: dict[Any, dict[str, float]] = {}
        self._qualities: dict[tuple[str, ...], float] = {}

    def spearman(self, fn: Callable, params: Any) -> float:
        compiled = jax.jit(fn)
        return stsb.spearman(lambda *tokens: compiled(params, *tokens), self.using, self.dev)

    def scores(self, level: Literal["blocks", "parts"]) -> dict[str, dict[str, float]]:
        """Name -> scores; the greedy ones depend on the level."""
        branches, params = self.branches, self.params

        def greedy(loss: Callable, batches: list[Any]) -> dict[str, float]:
            budget, number = ("branches", 2) if level == "blocks" else ("params", 4)
            return surgery.greedy_loss_increase(
                branches, loss, params, batches, number=number, level=level, budget=budget
            )

        def per_parameter(scores: dict[str, float]) -> dict[str, float]:
            return {branch.name: scores[branch.name] / branch.size for branch in branches}

        single = per_parameter if level == "parts" else lambda scores: scores
        of = {
            "random": lambda: self.once(surgery.random_branches, jax.random.key(0)),
            "norms": lambda: self.once(surgery.branch_norms, params),
            "block influence": lambda: self.once(surgery.block_influence, params, self.unpadded),
            "Taylor, pairs": lambda: self.once(surgery.branch_taylor, pairs, params, self.labelled),
            "loss increase, drift": lambda: single(
                self.once(surgery.loss_increase, drift, params, self.drift)
            ),
            "loss increase, pairs": lambda: single(
                self.once(surgery.loss_increase, pairs, params, self.labelled)
            ),
            "greedy, drift": lambda: greedy(drift, self.drift),
            "greedy, pairs": lambda: greedy(pairs, self.labelled),
        }
        return {name: score() for name, score in of.items() if level == "blocks" or name in ON_PARTS}

    def once(self, score: Callable, *args: Any) -> dict[str, float]:
        """Scores of all branches, which serve both levels."""
        key = (score, args[0] if callable(args[0]) else None)
        if key not in self._scores:
            self._scores[key] = score(self.branches, *args)
        return self._scores[key]

    def without(self, plan: Any) -> float:
        """Quality without the layers of a plan."""
        if plan.removed not in self._qualities:
            small = plan.shrink(self.params)
            self._qualities[plan.removed] = self.spearman(plan.compact(model.embed), small)
        return self._qualities[plan.removed]

    def depth(self, share: float, score: dict[str, float], level: str) -> Any:
        """Leaves out whole layers, as near as can be to a share of the encoder, or parts until it is met."""
        if level == "blocks":
            number = round(share * model.LAYERS)
            return jp.plan_layers(self.branches, self.params, number=number, score=score, level="blocks")
        return jp.plan_layers(self.branches, self.params, share * self.encoder / self.branches.size, score)

    def width(self, fn: Callable, params: Any, share: float) -> tuple[Any, Any]:
        """The plan for a share of heads and hidden units by structured OBS, and the refitted parameters."""
        groups = jp.find_groups(fn, params, *self.batches[0])
        fixed = [group.name for group in groups if group.size not in WIDTHS]
        consumers = jp.prunable(params, include=r"layers/.*/(out|down)/kernel")
        stats = jp.calibrate(
            fn, params, self.batches, where=consumers, moments="full", row_weights=lambda ids, mask: mask
        )
        score = surgery.obs_scores(groups, params, stats)
        plan = jp.plan_removal(groups, params, share, score=score, budget="units", exclude=fixed)
        refitted = jp.compensate(fn, params, plan, self.batches, row_weights=lambda ids, mask: mask)
        return plan, refitted


def minilm(folder: Path, quick: bool, markdown: Path | None) -> None:
    bench = Bench(folder, quick)
    dense = bench.spearman(model.embed, bench.params)
    print(f"dense: {dense:.4f}", flush=True)
    found: dict[str, dict[tuple[str, int], float]] = {}
    scores = {"blocks": bench.scores("blocks"), "parts": bench.scores("parts")}
    for level, of_level in scores.items():
        for name, score in of_level.items():
            for layers in (1, 2):
                plan = bench.depth(layers / model.LAYERS, score, level)
                quality = bench.without(plan)
                found.setdefault(name, {})[level, layers] = quality
                print(
                    f"{name}, {level}, {layers}: {quality:.4f} without {', '.join(plan.removed)}", flush=True
                )
    heads = ("layers by", "1 layer", "2 layers", "1/6 in parts", "2/6 in parts")
    places = [(level, layers) for level in ("blocks", "parts") for layers in (1, 2)]
    rows = [
        (name, *(f"{cells[place]:.4f}" if place in cells else "" for place in places))
        for name, cells in found.items()
    ]
    note = (
        f"Spearman's correlation on STS-B dev ({len(bench.dev.score)} pairs), dense {dense:.4f}, without training. "
        f"Parts are attention and MLP apart, to at least the parameters of 1 and 2 layers, by rise per parameter. "
        f"Drift: 1 - cosine to the dense embeddings of {sum(len(b[0]) for b in bench.drift)} train sentences, without "
        f"labels; pairs: {sum(len(b[2]) for b in bench.labelled)} labelled train pairs. {machine()}."
    )
    show("MiniLM without layers", heads, rows, note, markdown)
    note = (
        f"Depth by greedy drift, widths (heads and FFN units) by structured OBS, refitted by `jp.compensate` on the "
        f"same sentences. {machine()}."
    )
    show(
        f"MiniLM with {SHARE:.0%} fewer encoder parameters",
        ("removed by", "layers left out", "encoder, M", "fewer", "GFLOPs", "Spearman", "refitted"),
        compared(bench, scores),
        note,
        markdown,
    )


def compared(bench: Bench, scores: dict[str, dict[str, dict[str, float]]]) -> list[tuple[str, ...]]:
    """Rows of depth, of widths and of both at an equal share of the encoder's parameters."""
    score = scores["parts"]["greedy, drift"]
    rows = []
    for what, by_depth in (
        ("depth", SHARE),
        ("widths", 0.0),
        ("both", SHARE / 2),
    ):
        first = bench.depth(by_depth, score, "parts")
        fn, small = first.compact(model.embed), first.shrink(bench.params)
        qualities = [bench.without(first)] if first.removed else []
        left = count(small["layers"]) / bench.encoder
        if 1 - left < SHARE:
            plan, refitted = bench.width(fn, small, 1 - (1 - SHARE) / left)
            fn, small = plan.compact(fn), plan.shrink(small)
            qualities = [bench.spearman(fn, small), bench.spearman(fn, plan.shrink(refitted))]
        encoder = count(small["layers"])
        flops = jp.find_branches(fn, small, *(x[:1] for x in bench.batches[0])).flops
        rows.append(
            (
                what,
                ", ".join(first.removed),
                f"{encoder / 1e6:.2f}",
                f"{1 - encoder / bench.encoder:.1%}",
                f"{flops / 1e9:.2f}",
                f"{qualities[0]:.4f}",
                f"{qualities[1]:.4f}" if len(qualities) > 1 else "",
            )
        )
        print(rows[-1], flush=True)
    return rows
