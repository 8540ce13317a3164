"""What a pruned network costs: latency of the small network, bytes of its file, FLOPs."""

from __future__ import annotations

import io
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from jaxprune.delivery.latency import shortest_times
from jaxprune.experiments.classification import Classification
from jaxprune.jaxprs.flops import total_flops
from jaxprune.params import PyTree, flatten_with_paths

LARGE_BATCH = "64"
_BATCHES = (1, int(LARGE_BATCH))


def removes_units(recipe: jp.Recipe) -> bool:
    """Whether units are removed, so that the network becomes faster."""
    return recipe.removes or isinstance(recipe.structure, jp.Coupled)


def measure_costs(
    task: Classification, recipe: jp.Recipe, params: PyTree, pruned: Any, dense: PyTree
) -> dict[str, Any]:
    """Latency, bytes of a compressed file and FLOPs, each as a share of the dense network's.

    Pruned units are removed. Other masks leave zeros, at which the same program computes.

    Args:
      task, recipe: that were trained.
      params, pruned: parameters and masks; or smaller parameters and the plan.
      dense: parameters of full size.
    """
    fn, params = _small(task, recipe, params, pruned)
    images = task.test.images[:1]
    return {
        "latency": _latency(task, fn, params, dense),
        "bytes": _bytes(params) / _bytes(dense),
        "flops": _flops(fn, params, images) / _flops(task.logits, dense, images),
    }


def _small(task: Classification, recipe: jp.Recipe, params: PyTree, pruned: Any) -> tuple[Any, PyTree]:
    """The function and its parameters without the units that were pruned."""
    if recipe.removes:
        return pruned.compact(task.logits), params
    if isinstance(recipe.structure, jp.Coupled):
        plan = jp.plan_from_masks(recipe.structure.groups, pruned)
        return plan.compact(task.logits), plan.shrink(params)
    return task.logits, params


def _latency(task: Classification, fn: Any, params: PyTree, dense: PyTree) -> dict[str, float]:
    """Batch size -> latency as a share of the dense network's."""
    run, run_dense = jax.jit(fn), jax.jit(task.logits)
    found = {}
    for size in _BATCHES:
        images: Any = task.test.images[:size]
        times = shortest_times(
            {
                "small": lambda images=images: jax.block_until_ready(run(params, images)),
                "dense": lambda images=images: jax.block_until_ready(run_dense(dense, images)),
            }
        )
        found[str(size)] = times["small"] / times["dense"]
    return found


def _bytes(params: PyTree) -> int:
    file = io.BytesIO()
    paths, leaves, _ = flatten_with_paths(params)
    arrays: dict[str, Any] = dict(zip(paths, map(np.asarray, leaves), strict=True))
    np.savez_compressed(file, **arrays)
    return file.tell()


def _flops(fn: Any, params: PyTree, images: Any) -> int:
    return total_flops(jax.make_jaxpr(fn)(params, images).jaxpr)
