"""MiniLM without some of its heads and FFN units, in one shot: which go, and does a refit make up for them?

python benchmarks/one_shot_structured.py --data DATA

DATA holds stsb/stsb-en-{train,dev}.csv (PhilipMay/stsb-multi-mt): train sentences drawn at random calibrate,
Spearman's correlation on dev is measured. The model comes from a package, see `models/minilm.py`. The layer error
is the mean of ||X_K W - X W0||^2 / ||X W0||^2 over the attention outputs and second FFN matrices that lose inputs.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from models import minilm as model
from models import stsb

import jaxprune as jp
from jaxprune import surgery

WIDTHS = {
    "heads": (model.HEADS,),
    "FFN units": (model.HIDDEN,),
    "heads and FFN units": (model.HEADS, model.HIDDEN),
}
SHARES = (0.25, 0.5)
LENGTH = 32
NO_CHANGE = 1e12  # a damping at which no weight moves: the error of removal alone


def padding_mask(ids: Any, mask: Any) -> Any:
    del ids
    return mask


class Clock:
    """CPU seconds since it was last read, compilation included."""

    def __init__(self):
        self._start = time.process_time()

    def read(self) -> float:
        now = time.process_time()
        spent, self._start = now - self._start, now
        return spent


def count(params: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def table(data: Path, sentences: int, pairs: int | None) -> None:
    params, using = model.load(), model.tokenizer()
    batches, dev = stsb.calibration(data / "stsb", using, sentences, LENGTH), stsb.read(data / "stsb", "dev")
    if pairs is not None:
        dev = stsb.Pairs(dev.first[:pairs], dev.second[:pairs], dev.score[:pairs])
    embed = jax.jit(model.embed)

    def measure(params: Any) -> float:
        return stsb.spearman(lambda ids, mask: embed(params, ids, mask), using, dev)

    groups = jp.find_groups(model.embed, params, *batches[0])
    clock = Clock()
    consumers = jp.prunable(params, include=r"layers/.*/(out|down)/kernel")
    stats = jp.calibrate(
        model.embed, params, batches, where=consumers, moments="full", row_weights=padding_mask
    )
    obs, obs_s = surgery.obs_scores(groups, params, stats), clock.read()
    activations, activations_s = surgery.activation_scores(groups, params, batches), clock.read()
    l2, l2_s = surgery.l2_scores(groups, params), clock.read()
    scores = {
        "magnitude": (l2, l2_s),
        "activations": (activations, activations_s),
        "structured OBS": (obs, obs_s),
    }
    print(
        "| removed | parameters, M | units by | Spearman | refitted | layer error | refitted | refit, CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(f"| nothing | {count(params) / 1e6:.2f} | | {measure(params):.4f} | | | | |", flush=True)
    for what, widths in WIDTHS.items():
        fixed = [group.name for group in groups if group.size not in widths]
        for share in SHARES:
            for name, (score, _) in scores.items():
                plan = jp.plan_removal(groups, params, share, score=score, budget="units", exclude=fixed)
                found = {}
                for damping in (NO_CHANGE, 0.01):
                    layers: list[Any] = []
                    clock.read()
                    new = jp.compensate(
                        model.embed,
                        params,
                        plan,
                        batches,
                        damping=damping,
                        row_weights=padding_mask,
                        on_layer=layers.append,
                    )
                    spent = clock.read()
                    found[damping] = measure(new), float(np.mean([layer.error for layer in layers])), spent
                before, after = found[NO_CHANGE], found[0.01]
                print(
                    f"| {share:.0%} of {what} | {count(plan.shrink(params)) / 1e6:.2f} | {name} "
                    f"| {before[0]:.4f} | {after[0]:.4f} | {before[1]:.4f} | {after[1]:.4f} | {after[2]:.0f} |",
                    flush=True,
                )
    times = ", ".join(f"{name} {spent:.0f}" for name, (_, spent) in scores.items())
    print(f"\nCPU seconds to score all units, calibration and compilation included: {times}.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("JAXPRUNE_DATA"), help="data folder")
    parser.add_argument("--sentences", type=int, default=512, help="train sentences that calibrate")
    parser.add_argument("--pairs", type=int, help="only the first dev pairs, for quick looks")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data (or the environment variable JAXPRUNE_DATA) must name the data folder.")
    table(Path(options.data), options.sentences, options.pairs)


if __name__ == "__main__":
    main()
