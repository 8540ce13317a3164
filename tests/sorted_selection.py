"""Running op by op, with selection by sorting: the reference for compiled programs, and much quicker to begin."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune.sparse_training._dynamic
import jaxprune.structures.keep


def sorted_selection(scores, k, *, pruned=None):
    """What `select` promises, by sorting in NumPy; that it keeps its promise is tested in test_selection."""
    gone = [None] * len(scores) if pruned is None else pruned
    if isinstance(k, list):
        return [sorted_selection([s], n, pruned=[g])[0] for s, n, g in zip(scores, k, gone, strict=True)]
    gone = [
        np.zeros(s.shape, bool) if g is None else np.asarray(g) for s, g in zip(scores, gone, strict=True)
    ]
    flat = np.concatenate([np.asarray(s, np.float32).ravel() for s in scores])
    flat[np.concatenate([g.ravel() for g in gone]) | np.isnan(flat)] = -np.inf
    keep = np.ones(flat.size, bool)
    keep[np.argsort(flat, kind="stable")[: int(k)]] = False
    parts = np.split(keep, np.cumsum([s.size for s in scores])[:-1])
    return [jnp.asarray(part.reshape(s.shape) & ~g) for part, s, g in zip(parts, scores, gone, strict=True)]


@contextlib.contextmanager
def operation_by_operation():
    """Inside, nothing is compiled but single operations."""
    with jax.disable_jit(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxprune.structures.keep, "select", sorted_selection)
        patch.setattr(jaxprune.sparse_training._dynamic, "select", sorted_selection)
        yield
