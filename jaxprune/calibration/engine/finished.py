"""The result of a finished run in its journal."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.engine.journal import Journal, Record
from jaxprune.params import PyTree


def store_result(
    journal: Journal, before: PyTree, params: PyTree, masks: PyTree, unseen: dict[int, int]
) -> None:
    """Stores the leaves of `params` that differ from those `before`, the masks, and the numbers of unseen weights."""
    old, new, kept = map(jax.tree.leaves, (before, params, masks))
    changed = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a is not b]
    masked = [i for i, mask in enumerate(kept) if np.ndim(mask)]
    arrays = [np.asarray(new[i]) for i in changed] + [np.packbits(np.asarray(kept[i])) for i in masked]
    journal.finish(arrays, {"changed": changed, "masked": masked, "unseen": list(unseen.items())})


def stored_result(record: Record, before: PyTree) -> tuple[PyTree, PyTree, dict[int, int]]:
    """What `store_result` was given, in the shardings of the leaves before."""
    leaves, treedef = jax.tree.flatten(before)
    changed, masked = record.facts["changed"], record.facts["masked"]
    masks: list[Any] = [True] * len(leaves)
    for i, bits in zip(masked, record.arrays[len(changed) :], strict=True):
        mask = np.unpackbits(bits, count=np.size(leaves[i])).astype(bool).reshape(np.shape(leaves[i]))
        masks[i] = jax.device_put(mask, jnp.asarray(leaves[i]).sharding)
    for i, array in zip(changed, record.arrays, strict=False):
        old = jnp.asarray(leaves[i])
        leaves[i] = jax.device_put(array.view(old.dtype), old.sharding)
    unseen = {int(leaf): int(n) for leaf, n in record.facts["unseen"]}
    return jax.tree.unflatten(treedef, leaves), jax.tree.unflatten(treedef, masks), unseen
