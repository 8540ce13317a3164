"""What a pruned network costs: latency of the small network, bytes of its file, FLOPs."""

from __future__ import annotations

import io
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from jaxprune.experiments.classification import Classification
from jaxprune.experiments.latency import relative_latency
from jaxprune.jaxprs.flops import flops_by_parameter
from jaxprune.jaxprs.tracing import trace
from jaxprune.params import PyTree, flatten_with_paths

LARGE_BATCH = "64"
_BATCHES = (1, int(LARGE_BATCH))


def measure_removal(
    task: Classification, recipe: jp.Recipe, params: PyTree, masks: PyTree, dense: PyTree
) -> dict[str, Any]:
    """The latency of the network without its pruned units; nothing for masks of another structure."""
    if not isinstance(recipe.structure, jp.Coupled):
        return {}
    plan = jp.plan_from_masks(recipe.structure.groups, masks)
    return {"latency": _latency(task, plan.compact(task.logits), plan.shrink(params), dense)}


def measure_delivery(
    task: Classification, recipe: jp.Recipe, params: PyTree, masks: PyTree, dense: PyTree
) -> dict[str, Any]:
    """Latency, bytes of a compressed file and FLOPs, each as a share of the dense network's.

    Pruned units are removed. Other masks leave zeros, at which the same program computes.
    """
    fn: Any = task.logits
    if isinstance(recipe.structure, jp.Coupled):
        plan = jp.plan_from_masks(recipe.structure.groups, masks)
        fn, params = plan.compact(fn), plan.shrink(params)
    images = task.test.images[:1]
    return {
        "latency": _latency(task, fn, params, dense),
        "bytes": _bytes(params) / _bytes(dense),
        "flops": _flops(fn, params, images) / _flops(task.logits, dense, images),
    }


def _latency(task: Classification, fn: Any, params: PyTree, dense: PyTree) -> dict[str, float]:
    """Batch size -> latency as a share of the dense network's."""
    run, run_dense = jax.jit(fn), jax.jit(task.logits)
    found = {}
    for size in _BATCHES:
        images: Any = task.test.images[:size]
        found[str(size)] = relative_latency(
            lambda images=images: run(params, images), lambda images=images: run_dense(dense, images)
        )
    return found


def _bytes(params: PyTree) -> int:
    file = io.BytesIO()
    paths, leaves, _ = flatten_with_paths(params)
    np.savez_compressed(file, **dict(zip(paths, map(np.asarray, leaves), strict=True)))
    return file.tell()


def _flops(fn: Any, params: PyTree, images: Any) -> float:
    return sum(flops_by_parameter(trace(fn, params, (images,))))
