"""How much of MiniLM's heads and FFN units can go before its sentence embeddings get worse?

Of the 12 heads and 1536 hidden units of each of 6 layers, 25 % or 50 % go by three scores, without training;
the largest cut is then fine-tuned on a third of STS-B's training pairs, and so is the dense model. Quality is
Spearman's correlation on STS-B dev.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from models import minilm as model
from models import stsb
from surgery_measure import BATCHES, count, jitted, machine, shortest, show, xla_flops

import jaxprune as jp
from jaxprune.surgery import Groups, UnitScores, activation_scores, taylor_scores

CALIBRATION = (16, 32)  # tokens in a sentence, sentences in a batch
LENGTH = 32  # tokens of a sentence in training, calibration and timing; longer sentences are cut
WIDTHS = {
    "heads": (model.HEADS,),
    "FFN units": (model.HIDDEN,),
    "heads and FFN units": (model.HEADS, model.HIDDEN),
}
SHARES = (0.25, 0.5)


class Batch(NamedTuple):
    """Tokens of both sentences (pairs, LENGTH) and the similarity of each pair in [0, 1]."""

    first: tuple[np.ndarray, np.ndarray]
    second: tuple[np.ndarray, np.ndarray]
    score: np.ndarray


def loss_fn(embed: Callable, params: Any, batch: Batch) -> jax.Array:
    """Mean squared difference between cosine and similarity."""
    cosine = (embed(params, *batch.first) * embed(params, *batch.second)).sum(-1)
    return jnp.square(cosine - batch.score).mean()


def batches(using: Any, pairs: stsb.Pairs, size: int, seed: int = 0) -> list[Batch]:
    """All pairs in random order; the last, smaller batch is left out."""
    order = np.random.default_rng(seed).permutation(len(pairs.score))

    def tokens(sentences: list[str], chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return model.tokenize(using, [sentences[i] for i in chosen], LENGTH)

    return [
        Batch(tokens(pairs.first, chosen), tokens(pairs.second, chosen), pairs.score[chosen] / 5)
        for chosen in order[: len(order) // size * size].reshape(-1, size)
    ]


def taylor(groups: Groups, params: Any, data: list[Batch]) -> UnitScores:
    """Mean over batches of the squared first-order change of the loss."""
    grads = jax.jit(jax.grad(lambda p, batch: loss_fn(model.embed, p, batch)))
    scores = [taylor_scores(groups, params=params, gradients=grads(params, batch)) for batch in data]
    return UnitScores({g.name: np.mean([s[g.name] for s in scores], axis=0) for g in groups})


def activation(groups: Groups, params: Any, using: Any, sentences: list[str]) -> UnitScores:
    """Mean absolute activation over sentences of one length, so that no padding counts."""
    length, size = CALIBRATION
    fitting = [s for s in dict.fromkeys(sentences) if len(using.encode(s).ids) == length]
    ids, mask = model.tokenize(using, fitting[: len(fitting) // size * size], length)
    batches = list(zip(ids.reshape(-1, size, length), mask.reshape(-1, size, length), strict=True))
    return activation_scores(groups, params, batches)


def tune(fn: Callable, params: Any, data: list[Batch], rate: float = 1e-4) -> Any:
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, len(data) // 10, len(data)))

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Batch) -> tuple[Any, Any]:
        updates, opt_state = tx.update(jax.grad(lambda p: loss_fn(fn, p, batch))(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for batch in data:
        params, opt_state = step(params, opt_state, batch)
    return params


def minilm(folder: str, quick: bool, markdown: Path | None) -> None:
    params, using = model.load(), model.tokenizer()
    train, dev = stsb.read(folder, "train"), stsb.read(folder, "dev")
    training = batches(using, train, size=32)[:60]
    if quick:
        training, dev = training[:4], stsb.Pairs(dev.first[:100], dev.second[:100], dev.score[:100])
    ids, mask = training[0].first
    tokens = jax.ShapeDtypeStruct(CALIBRATION[::-1], ids.dtype)
    groups = jp.find_groups(model.embed, params, tokens, tokens)
    print(groups)
    scores = {
        "L2": None,
        "Taylor": taylor(groups, params, training[:16]),
        "activations": activation(groups, params, using, train.first),
    }

    def quality(fn: Callable, params: Any) -> float:
        compiled = jax.jit(fn)
        found = stsb.spearman(lambda *tokens: compiled(params, *tokens), using, dev)
        print(f"  {found:.4f}", flush=True)
        return found

    dense = quality(model.embed, params)
    variants: list[tuple[str, Callable, Any, list[float]]] = [
        ("all", model.embed, params, [dense] * len(scores))
    ]
    for what, widths in WIDTHS.items():
        fixed = [group.name for group in groups if group.size not in widths]
        for share in SHARES:
            plans = {
                name: jp.plan_removal(groups, params, share, score=score, budget="units", exclude=fixed)
                for name, score in scores.items()
            }
            smaller = {name: (plan.compact(model.embed), plan.shrink(params)) for name, plan in plans.items()}
            print(f"{what}, {share:.0%}")
            found = [quality(*pair) for pair in smaller.values()]
            variants.append((f"{share:.0%} of {what}", *smaller["Taylor"], found))
    name, fn, small, _ = variants[-1]
    tuned = [
        quality(model.embed, tune(model.embed, params, training)),
        quality(fn, tune(fn, small, training)),
    ]
    heads = (
        "removed",
        "parameters, M",
        "of the encoder, M",
        "XLA GFLOPs",
        *(f"batch {batch}, ms" for batch in BATCHES),
        *(f"gain at batch {batch}" for batch in BATCHES),
        *(f"Spearman, {score}" for score in scores),
    )
    note = (
        f"Spearman's correlation on STS-B dev ({len(dev.score)} pairs), without training. Taylor: 16 batches of 32 "
        f"training pairs; activations: training sentences of {CALIBRATION[0]} tokens. After {len(training)} steps of "
        f"32 training pairs: dense {tuned[0]:.3f}, {name} by Taylor {tuned[1]:.3f}. FLOPs of one sentence and "
        f"latency at {LENGTH} tokens; latency: shortest, all by turns. {machine()}."
    )
    show("MiniLM (all-MiniLM-L6-v2) on STS-B", heads, rows(variants, ids, mask), note, markdown)


def rows(variants: Any, ids: np.ndarray, mask: np.ndarray) -> list[tuple[str, ...]]:
    times = shortest(
        {
            (name, batch): jitted(fn, params, ids[:batch], mask[:batch])
            for name, fn, params, _ in variants
            for batch in BATCHES
        }
    )
    return [
        (
            name,
            f"{count(params) / 1e6:.2f}",
            f"{count(params['layers']) / 1e6:.2f}",
            f"{xla_flops(fn, params, ids[:1], mask[:1]) / 1e9:.2f}",
            *(f"{times[name, batch] * 1e3:.2f}" for batch in BATCHES),
            *(f"{times['all', batch] / times[name, batch]:.2f}" for batch in BATCHES),
            *(f"{value:.3f}" for value in found),
        )
        for name, fn, params, found in variants
    ]
