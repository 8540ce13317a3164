"""STS-B: pairs of sentences with a similarity from 0 to 5, and how well embeddings agree with it.

The English CSV files are those of https://github.com/PhilipMay/stsb-multi-mt (data/stsb-en-train.csv and
stsb-en-dev.csv).

References:
  Cer et al., SemEval-2017 Task 1: Semantic Textual Similarity, 2017, arXiv:1708.00055.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from models import minilm

# Sentences are padded to the shortest of these that holds them: few shapes to compile, little padding.
LENGTHS = (16, 32, 64, 128)


class Pairs(NamedTuple):
    """Two lists of sentences and the similarity of each pair, float32 in [0, 5]."""

    first: list[str]
    second: list[str]
    score: np.ndarray


class Sentences(NamedTuple):
    """Tokens of a batch of sentences and their places in the whole list."""

    ids: np.ndarray
    mask: np.ndarray
    places: np.ndarray


def read(folder: str | Path, split: str) -> Pairs:
    """One split, "train" or "dev"."""
    path = Path(folder) / f"stsb-en-{split}.csv"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. {(__doc__ or '').split(chr(10) * 2)[1]}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return Pairs([r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows], np.float32))


def calibration(
    folder: str | Path, using: Any, count: int, length: int, batch: int = 64
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches (ids, mask) of train sentences drawn at random: the file is in the order of its sources.

    A last batch that is smaller is left out.
    """
    found = list(dict.fromkeys(read(folder, "train").first))
    drawn = [found[i] for i in np.random.default_rng(0).permutation(len(found))[:count]]
    ids, mask = minilm.tokenize(using, drawn, length)
    return [(ids[i : i + batch], mask[i : i + batch]) for i in range(0, len(ids) // batch * batch, batch)]


def batches(using: Any, sentences: list[str], size: int = 64) -> Iterator[Sentences]:
    """All sentences in batches of one shape for each length, the last of a length filled up."""
    lengths = [len(encoding.ids) for encoding in using.encode_batch(sentences)]
    order = np.argsort(lengths, kind="stable")
    fits = np.searchsorted(LENGTHS, np.minimum(np.asarray(lengths)[order], LENGTHS[-1]))
    for index, length in enumerate(LENGTHS):
        places = order[fits == index]
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            filled = np.resize(chosen, size)  # repeats
            ids, mask = minilm.tokenize(using, [sentences[i] for i in filled], length)
            yield Sentences(ids, mask, filled)


def spearman(embed: Callable[[np.ndarray, np.ndarray], jax.Array], using: Any, pairs: Pairs) -> float:
    """Spearman's rank correlation between the cosine of two embeddings and the given similarity."""
    sentences = list(dict.fromkeys([*pairs.first, *pairs.second]))
    at = {sentence: place for place, sentence in enumerate(sentences)}
    rows: dict[int, np.ndarray] = {}
    for batch in batches(using, sentences):
        rows.update(zip(batch.places.tolist(), np.asarray(embed(batch.ids, batch.mask)), strict=True))
    first = np.stack([rows[at[s]] for s in pairs.first])
    second = np.stack([rows[at[s]] for s in pairs.second])
    return rank_correlation((first * second).sum(1), pairs.score)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of ranks; equal values share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
