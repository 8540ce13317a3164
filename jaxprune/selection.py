"""Temporary: sort-based selection."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Count(NamedTuple):
    high: jax.Array
    low: jax.Array


def count_to_prune(sparsity, n):
    if isinstance(sparsity, jax.Array):
        return jnp.round(sparsity * n).astype(jnp.int32)
    return round(float(sparsity) * n)


def select(scores, k, *, pruned=None):
    if isinstance(k, Count):
        k = k.low.astype(jnp.int32)
    flat = jnp.concatenate([jnp.asarray(s).astype(jnp.float32).ravel() for s in scores])
    flat = jnp.where(jnp.isnan(flat), -jnp.inf, flat)
    p = [None] * len(scores) if pruned is None else pruned
    pf = jnp.concatenate([jnp.zeros(s.size, bool) if q is None else q.ravel() for s, q in zip(scores, p)])
    order = jnp.lexsort((flat, ~pf))
    rank = jnp.zeros(flat.size, jnp.int32).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    keep = (rank >= k) & ~pf
    out, at = [], 0
    for s in scores:
        out.append(keep[at : at + s.size].reshape(s.shape))
        at += s.size
    return out


def nm_keep(scores, n, m, axis, pruned=None):
    s = jnp.moveaxis(scores.astype(jnp.float32), axis, -1)
    s = jnp.where(jnp.isnan(s), -jnp.inf, s)
    if pruned is not None:
        s = jnp.where(jnp.moveaxis(pruned, axis, -1), -jnp.inf, s)
    g = s.reshape(*s.shape[:-1], -1, m)
    rank = jnp.argsort(jnp.argsort(g, -1, stable=True), -1, stable=True)
    keep = jnp.moveaxis((rank >= m - n).reshape(s.shape), -1, axis)
    return keep if pruned is None else keep & ~pruned
