"""Do zeros in a matrix make a product faster: in a dense array, in BCOO and BCSR, or as a smaller array?

python benchmarks/sparse_formats.py

A batch of rows times a pruned square matrix, compiled, on the default device. "removed" is the product with the matrix
without so large a share of its columns. Figures are times over that of the dense matrix; shortest, all by turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import sparse
from surgery_measure import jitted, machine, show

import jaxprune as jp
from jaxprune.delivery.latency import shortest_times

SPARSITIES = (0.5, 0.9, 0.99)
HEADS = ("batch", "matrix", "sparsity", "dense, ms", "zeros in place", "BCOO", "BCSR", "removed")


def measure(batch: int, width: int, sparsity: float, seconds: float) -> tuple[str, ...]:
    w = jax.random.normal(jax.random.key(0), (width, width))
    x = jax.random.normal(jax.random.key(1), (batch, width))
    zeros = jp.apply_masks({"w": w}, jp.make_masks(jp.scores.magnitude({"w": w}), sparsity))["w"]
    bcoo, narrow = sparse.BCOO.fromdense(zeros), w[:, : width - round(sparsity * width)]

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    runs: dict[str, Callable] = {
        "dense": jitted(product, x, w),
        "zeros": jitted(product, x, zeros),
        "BCOO": jitted(product, x, bcoo),
        "BCSR": jitted(lambda w, x: (w @ x.T).T, sparse.BCSR.from_bcoo(sparse.BCOO.fromdense(zeros.T)), x),
        "removed": jitted(product, x, narrow),
    }
    assert jnp.allclose(runs["BCOO"](), runs["zeros"](), atol=1e-3)
    assert jnp.allclose(runs["BCSR"](), runs["zeros"](), atol=1e-3)
    times = shortest_times(runs, seconds)
    ratios = [f"{times[name] / times['dense']:.2f}" for name in ("zeros", "BCOO", "BCSR", "removed")]
    return (str(batch), f"{width} x {width}", f"{sparsity:.0%}", f"{1e3 * times['dense']:.3f}", *ratios)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=0.5, help="of each run")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows = [
        measure(batch, width, sparsity, options.seconds)
        for width in options.widths
        for batch in options.batches
        for sparsity in SPARSITIES
    ]
    show("Products with pruned matrices", HEADS, rows, machine(), options.markdown)


if __name__ == "__main__":
    main()
