"""Depth: what do pretrained models lose when layers are left out, without training?

    python benchmarks/depth.py smollm2 --data DATA [--results depth.json]     # perplexity, FLOPs and latency
    python benchmarks/depth.py minilm --data DATA                             # layers against widths against both

DATA holds text/wikitext-2-valid.txt (WikiText-2, word-tokenised, as in pytorch/examples) for smollm2 and
stsb/stsb-en-{train,dev}.csv (PhilipMay/stsb-multi-mt) for minilm; the models come from packages, see `models/`.
Scores and cells of smollm2 that are in the results already are not computed again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", choices=("smollm2", "minilm"))
    parser.add_argument("--data", type=Path, default=os.environ.get("JAXPRUNE_DATA"), help="data folder")
    parser.add_argument("--results", type=Path, help="a JSON file that smollm2 adds to")
    parser.add_argument("--quick", action="store_true", help="few tokens and sentences, to see that it runs")
    parser.add_argument("--table", action="store_true", help="smollm2: only what is in the results")
    parser.add_argument("--markdown", type=Path, help="add the tables to this file")
    options = parser.parse_args()
    if options.data is None:
        parser.error("--data (or the environment variable JAXPRUNE_DATA) must name the data folder.")
    if options.model == "smollm2":
        from depth_smollm2 import smollm2

        smollm2(Path(options.data), options.results, options.quick, options.table, options.markdown)
    else:
        from depth_minilm import minilm

        minilm(Path(options.data), options.quick, options.markdown)


if __name__ == "__main__":
    main()
