"""Surgery: what does removing channels, heads and units bring in size, FLOPs and measured CPU latency?

    python benchmarks/surgery.py speed                                # ResNet-18 and ViT-S/16, Torch-Pruning
    python benchmarks/surgery.py accuracy [--data mnist --data-dir DIR]     # a residual CNN, fine-tuned
    python benchmarks/surgery.py minilm --data-dir DIR                # MiniLM's heads and FFN units, STS-B

Each adds its table to a Markdown file with `--markdown FILE`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "accuracy", "minilm"))
    parser.add_argument("--data", choices=("digits", "mnist"), default="digits", help="for `accuracy`")
    parser.add_argument(
        "--data-dir",
        help="folder with MNIST's four files, or with STS-B's stsb-en-train.csv and stsb-en-dev.csv; default: "
        "mnist or stsb in the folder that JAXPRUNE_DATA names",
    )
    parser.add_argument("--quick", action="store_true", help="few steps and sentences, to see that it runs")
    parser.add_argument("--markdown", type=Path, help="add the table to this file")
    options = parser.parse_args()
    if options.data_dir is None and "JAXPRUNE_DATA" in os.environ:
        options.data_dir = os.path.join(
            os.environ["JAXPRUNE_DATA"], "stsb" if options.what == "minilm" else "mnist"
        )
    if options.what == "speed":
        from surgery_speed import speed

        speed(options.markdown, 1 if options.quick else 5)
    elif options.what == "accuracy":
        from surgery_accuracy import accuracy

        accuracy(options.data, options.data_dir, options.quick, options.markdown)
    else:
        from surgery_minilm import minilm

        if options.data_dir is None:
            parser.error("minilm needs --data-dir, a folder with STS-B's files")
        minilm(options.data_dir, options.quick, options.markdown)


if __name__ == "__main__":
    main()
