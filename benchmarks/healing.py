"""Does a pruned model recover without labels: MiniLM by distillation, a residual CNN by new BatchNorm statistics?

python benchmarks/healing.py minilm --data DATA
python benchmarks/healing.py digits
python benchmarks/healing.py mnist --data DATA

MiniLM loses half of its heads and FFN units by structured OBS and is refitted by `compensate`, then distilled toward
the dense model's sentence embeddings on unlabelled sentences of STS-B's train pairs that dev lacks; Spearman's
correlation on dev is measured. The residual CNN of `surgery_accuracy.py` loses half of its channels before any
training, of every group by L2 norm, or of all together by Taylor scores taken anew in rounds; only the means and
variances of its BatchNorms are estimated anew, from training images without labels.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from models import minilm as model
from models import stsb

import jaxprune as jp

SHARE = 0.5
IMAGES = 2048  # in a batch that estimates statistics
ROUNDS = 12


def minilm(folder: Path, options: argparse.Namespace) -> None:
    from one_shot_structured import padding_mask

    params, using = model.load(), model.tokenizer()
    dev = stsb.read(folder / "stsb", "dev")

    def measure(fn: Any, params: Any) -> float:
        embed = jax.jit(fn)
        return stsb.spearman(lambda ids, mask: embed(params, ids, mask), using, dev)

    calibration = stsb.calibration(folder / "stsb", using, 512, 32)
    groups = jp.find_groups(model.embed, params, *calibration[0])
    fixed = [group.name for group in groups if group.size not in (model.HEADS, model.HIDDEN)]
    consumers = jp.prunable(params, include=r"layers/.*/(out|down)/kernel")
    stats = jp.calibrate(
        model.embed, params, calibration, where=consumers, moments="full", row_weights=padding_mask
    )
    score = jp.surgery.obs_scores(groups, params, stats)
    plan = jp.plan_removal(groups, params, SHARE, score=score, budget="units", exclude=fixed)
    refitted = jp.compensate(model.embed, params, plan, calibration, row_weights=padding_mask)
    small, small_fn = plan.shrink(refitted), plan.compact(model.embed)
    print(f"dense {measure(model.embed, params):.4f}, refitted {measure(small_fn, small):.4f}", flush=True)
    ids, mask = model.tokenize(using, unlabelled(folder / "stsb", dev)[: options.sentences], options.length)
    size, steps = options.batch, options.steps
    batches = [(ids[at : at + size], mask[at : at + size]) for at in range(0, len(ids) - size + 1, size)]
    start = time.process_time()
    schedule = optax.warmup_cosine_decay_schedule(0, options.rate, steps // 10, steps)
    healed, losses = jp.distill(
        small_fn,
        small,
        model.embed,
        params,
        batches,
        optax.adam(schedule),
        steps=steps,
        where=jp.prunable(
            small, include="layers"
        ),  # the tables of embeddings lost nothing, and cost a third of a step
        key=jax.random.key(0),
        progress=True,
        history=True,
    )
    jax.block_until_ready(losses)
    spent = time.process_time() - start
    print(f"distilled {measure(small_fn, healed):.4f}")
    print(
        f"{steps} steps of {size} sentences of {options.length} tokens, {len(batches)} batches; loss "
        f"{float(losses[:10].mean()):.2e} to {float(losses[-10:].mean()):.2e}; {spent:.0f} CPU seconds."
    )


def unlabelled(folder: Path, dev: Any) -> list[str]:
    """The sentences of the train pairs in a drawn order, without those that dev has too."""
    pairs, measured = stsb.read(folder, "train"), {*dev.first, *dev.second}
    found = [s for s in dict.fromkeys([*pairs.first, *pairs.second]) if s not in measured]
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def cnn(name: Any, folder: Path | None) -> None:
    from models.resnet import ResNet
    from surgery_accuracy import SETTINGS, share_right, train

    from jaxprune.experiments import data

    sets, setting = data.load(name, folder and str(folder / "mnist")), SETTINGS[name]
    shape: dict[str, Any] = {"classes": 10, "pool": False, **setting.model}
    testing, training = ResNet(**shape), ResNet(train=True, **shape)
    example = jnp.asarray(sets.train.images[:1])

    def train_fn(variables: Any, x: jax.Array) -> Any:
        return training.apply(variables, x, mutable=["batch_stats"])

    dense: Any = testing.init(jax.random.key(0), example)
    dense = train(train_fn, dense, sets.train, setting.batch, setting.steps, 3e-3)
    print(f"dense {share_right(testing.apply, dense, sets.test):.2%}", flush=True)
    images = sets.train.images
    size = min(len(images), IMAGES)
    batches = [
        jnp.asarray(images[at : at + size]) for at in range(0, min(len(images), 4 * size) - size + 1, size)
    ]
    scoring = [jnp.asarray(images[at : at + 256]) for at in range(0, 1024, 256)]
    groups = jp.find_groups(testing.apply, dense, example)

    def state(variables: Any, outputs: Any) -> Any:
        return variables["batch_stats"], outputs[1]["batch_stats"]

    def heal(plan: jp.Plan, how: str) -> Any:
        small, small_fn = plan.shrink(dense), plan.compact(testing.apply)
        small_train_fn = dataclasses.replace(plan, state=state).compact(train_fn)
        number = sum(x.size for x in jax.tree.leaves(small["params"]))
        print(f"half of the channels removed by {how}: {number:,} parameters", end=", ")
        print(f"{share_right(small_fn, small, sets.test):.2%}", end=", ", flush=True)
        small = jp.reestimate_statistics(small_train_fn, small, batches)
        print(f"statistics estimated anew {share_right(small_fn, small, sets.test):.2%}", flush=True)
        return small, small_fn, small_train_fn

    heal(jp.plan_removal(groups, dense, SHARE, budget="units"), "L2 norm")
    plan = taylor_in_rounds(groups, dense, testing.apply, train_fn, scoring)
    small, small_fn, small_train_fn = heal(plan, f"Taylor in {ROUNDS} rounds")
    few = [jnp.asarray(images[at : at + 64]) for at in range(0, min(len(images), 4096) - 63, 64)]
    start = time.process_time()
    healed = jp.distill(
        small_fn, small, testing.apply, dense, few, optax.adam(1e-3), steps=150, key=jax.random.key(1)
    )
    again = jp.reestimate_statistics(small_train_fn, healed, batches)
    print(f"distilled {share_right(small_fn, healed, sets.test):.2%}", end=", ")
    print(f"statistics anew after it {share_right(small_fn, again, sets.test):.2%}", end=", ")
    print(f"{time.process_time() - start:.0f} CPU seconds")


def taylor_in_rounds(
    groups: jp.surgery.Groups, dense: Any, fn: Any, train_fn: Any, batches: list[jax.Array]
) -> jp.Plan:
    """A plan by Taylor scores of the distance to the dense model, taken anew after each share that is removed.

    In training mode the BatchNorms normalise what is left, so that the scores are those of a network whose
    statistics are estimated anew. No labels are needed.
    """

    @jax.jit
    def gradient(variables: Any, x: jax.Array, target: jax.Array) -> Any:
        def loss(variables: Any) -> jax.Array:
            return optax.softmax_cross_entropy(train_fn(variables, x)[0], target).mean()

        return jax.grad(loss)(variables)

    targets = [jax.nn.softmax(jax.jit(fn)(dense, x)) for x in batches]
    plan, masked = jp.plan_removal(groups, dense, 0.0), dense
    for i in range(ROUNDS):
        gradients = [(gradient(masked, x, target),) for x, target in zip(batches, targets, strict=True)]

        def score(gradients: Any, masked: Any = masked) -> jp.surgery.UnitScores:
            return jp.surgery.taylor_scores(groups, params=masked, gradients=gradients)

        scores = jp.surgery.mean_scores(score, gradients)
        share = SHARE * (i + 1) / ROUNDS
        plan = jp.plan_removal(
            groups, dense, share, score=scores, budget="units", scope="global", normalize=None
        )
        masked = jp.apply_masks(dense, plan.masks(dense))
    return plan


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=("minilm", "digits", "mnist"))
    parser.add_argument("--data", type=Path, default=os.environ.get("JAXPRUNE_DATA"), help="data folder")
    parser.add_argument("--steps", type=int, default=600, help="steps of distillation of MiniLM")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--sentences", type=int, default=100_000)
    options = parser.parse_args()
    if options.model != "minilm":
        return cnn(options.model, options.data)
    if options.data is None:
        parser.error("--data (or the environment variable JAXPRUNE_DATA) must name the data folder.")
    minilm(Path(options.data), options)
    return None


if __name__ == "__main__":
    main()
