"""The networks of `jaxprune compare` without the units that were pruned, and how fast they are."""

from __future__ import annotations

from typing import Any

import jax

import jaxprune as jp
from jaxprune.experiments.classification import Classification
from jaxprune.experiments.latency import relative_latency
from jaxprune.params import PyTree

LARGE_BATCH = "64"
_BATCHES = (1, int(LARGE_BATCH))


def latencies(
    task: Classification, structure: jp.Coupled, params: PyTree, masks: PyTree, dense: PyTree
) -> dict[str, float]:
    """Batch size -> latency of the small network as a share of the dense one's."""
    plan = jp.plan_from_masks(structure.groups, masks)
    small, run_small = plan.shrink(params), jax.jit(plan.compact(task.logits))
    run_dense = jax.jit(task.logits)
    found = {}
    for size in _BATCHES:
        images: Any = task.test.images[:size]
        found[str(size)] = relative_latency(
            lambda images=images: run_small(small, images), lambda images=images: run_dense(dense, images)
        )
    return found
