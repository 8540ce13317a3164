"""What a run of `reconstruct` computes and keeps, from shapes alone, and how long this machine takes for it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.engine.model import CalibrationModel, shared_weights
from jaxprune.calibration.engine.passes import Pass, bytes_of, one_pass, work_and_results
from jaxprune.calibration.methods import Method, Refinement, Refit
from jaxprune.jaxprs import as_abstract
from jaxprune.jaxprs.normalizations import normalizations
from jaxprune.jaxprs.program import Use
from jaxprune.jaxprs.stream import sites
from jaxprune.jaxprs.windows import Window, windows
from jaxprune.jaxprs.work import Work
from jaxprune.progress import duration, memory
from jaxprune.structures.matrix import MatrixStructure

_COPIES = 6  # of X^T X and of a weight matrix while it is pruned: scaled, factors, targets, differences
_PROBE = 512, 1 << 18  # size of a product, number of elements


class CalibrationCost(NamedTuple):
    """An estimate. Printing it shows a sentence.

    flops: floating-point operations of products and factorizations; bytes: of the arrays that are there at the same
    time, those of the caller included; seconds: on this machine, without compilation.
    """

    flops: float
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.flops / 1e9:.4g} GFLOP, about {duration(self.seconds)} without compilation, "
            f"{memory(self.bytes)} of arrays"
        )


def cost_of(
    model: CalibrationModel,
    structure: MatrixStructure,
    method: Method,
    refine: Sequence[Refinement],
    refit: Refit | None,
    dense_targets: float,
    statistics: bool,
    is_full: bool,
) -> CalibrationCost:
    """The cost of a run: passes, moments, solves and the training of windows."""
    found = [] if refit is None else windows(model.program, refit.window)
    once, n = one_pass(model, [out for window in found for out in window.outs]), len(model.batches)
    strength = 0.0
    if refit is not None:
        strength = dense_targets if refit.dense_targets is None else refit.dense_targets
    passes = 1 + bool(dense_targets or strength) + bool(shared_weights(model))
    if statistics and normalizations(model.program, [value.shape for value in model.values]):
        passes += 1
    work = once.work.times(n * passes)
    largest = 0

    @functools.cache
    def of_matrix(inputs, outputs):
        return _of_matrix(method, structure, refine, inputs, outputs, is_full)

    for uses in sites(model.program):
        here, size = _of_site(once, n, uses, of_matrix, bool(dense_targets), is_full)
        work, largest = work + here, max(largest, size)
    if refit is not None:
        work += _of_windows(model, once, found, refit.steps, n)
    weights, batches = (
        sum(bytes_of(as_abstract(x)) for x in arrays)
        for arrays in (model.values, [x for batch in model.batches for x in batch])
    )
    pruned = sum(bytes_of(model.values[leaf]) for leaf in {use.leaf for use in model.program.uses})
    streams = 1 + bool(dense_targets or strength)
    kept = weights + 3 * pruned + batches + streams * n * once.kept + once.largest + largest
    return CalibrationCost(work.flops, int(kept), _seconds(work))


def _of_site(
    once: Pass,
    n: int,
    uses: Sequence[Use],
    of_matrix: Callable[[int, int], tuple[Work, Work]],
    targets: bool,
    is_full: bool,
) -> tuple[Work, int]:
    """The work for the weights of one site over n batches, and the bytes of its matrices."""
    patches, (x,) = work_and_results(uses[0].rows, once.values[uses[0].x])
    groups, rows, inputs = x.shape
    entries, square = groups * rows * inputs, groups * inputs * inputs
    moments = patches + Work(2 * rows * square if is_full else 0, 4 * entries)
    if targets:
        moments += patches + Work(2 * rows * square, 4 * entries)
    work = moments.times(n)
    for i, use in enumerate(uses):
        factor, solve = of_matrix(inputs, use.matrix.shape[2])
        work += (solve if i else factor + solve).times(groups)
        if targets:
            columns = square * use.matrix.shape[2]
            work += Work(groups * inputs**3 / 3 + 6 * columns, 0)
    largest = max(math.prod(use.matrix.shape) for use in uses)
    return work, 4 * _COPIES * (largest + (square if is_full else groups * inputs))


def _of_matrix(
    method: Method,
    structure: MatrixStructure,
    refine: Sequence[Refinement],
    inputs: int,
    outputs: int,
    is_full: bool,
) -> tuple[Work, Work]:
    """The work of a factorization, and of pruning and refining one matrix with it."""
    floats = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    w, mask, count = (
        floats((inputs, outputs)),
        jax.ShapeDtypeStruct((inputs, outputs), bool),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    gram = floats((inputs, inputs) if is_full else (inputs,))
    try:
        factorizing, _ = work_and_results(method.factorize, gram)
        factor = jax.eval_shape(method.factorize, gram)
        solving, _ = work_and_results(lambda *args: method.solve(*args, structure), w, gram, factor, count)
        for each in refine:
            by, trips = functools.partial(each.refine, structure=structure), getattr(each, "steps", 1)
            solving += work_and_results(by, w, gram, w, mask, trips=trips)[0]
    except (TypeError, ValueError):  # a method of the caller's own that needs values: it counts as nothing
        return Work(), Work()
    return factorizing, solving


def _of_windows(model: CalibrationModel, once: Pass, found: Sequence[Window], steps: int, n: int) -> Work:
    """The training of windows: a step is a forward and a backward pass of a window on one batch."""
    total = Work()
    for window in found:
        forward = sum((once.steps[i] for i in window.steps if i in once.steps), Work())
        size = sum(model.values[part.leaf].size for part in window.parts.values() if not part.at)
        total += forward.times(3 * steps + 2 * n) + Work(0, 12 * size * steps)
    return total


def _seconds(work: Work) -> float:
    flops, elements = _speed()
    return work.flops / flops + work.elements / elements


@functools.cache
def _speed() -> tuple[float, float]:
    """FLOPs and elements a second on this machine: the best of a few products and a few chains of operations."""
    side, length = _PROBE
    a, x = jnp.ones((side, side)), jnp.ones(length)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=jax.lax.Precision.HIGHEST))

    def chain(x):
        for _ in range(8):
            x = jnp.maximum(x * 1.5 - x * x, 0.1)
        return x

    return 2 * side**3 / _best(product, a), 8 * 4 * length / _best(jax.jit(chain), x)


def _best(fn: Any, x: jax.Array, tries: int = 5) -> float:
    jax.block_until_ready(fn(x))
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        jax.block_until_ready(fn(x))
        times.append(time.perf_counter() - start)
    return float(np.min(times))
