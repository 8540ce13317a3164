"""Outlier-weighed layerwise sparsity (OWL)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxprune.allocate._exact import Shape, allocation, known_share
from jaxprune.params import PyTree, flatten_with_paths, prunable_leaves


def owl(
    scores: PyTree,
    sparsity: float,
    M: float = 5.0,
    lam: float = 0.08,
    where: PyTree | None = None,
    layer: Callable[[str], str] | None = None,
) -> PyTree:
    r"""Layers with more outliers among their scores are pruned less.

    \(o_l\) is the fraction of a layer's scores above M times their mean. The density is
    \(d_l = c + 2\lambda\,(o_l - \min o)/(\max o - \min o)\), with c such that the budget is met.
    If all layers have the same fraction of outliers, all have the same density.

    Args:
      scores: pytree of scores; the paper uses those of Wanda.
      sparsity: fraction of the prunable weights to prune, in [0, 1).
      M: an outlier is a score above M times the mean.
      lam: half the difference between the largest and the smallest density.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(scores)`.
      layer: path -> name of the layer that the leaf belongs to. The leaves of a layer have the same density (in the
        paper a layer is a transformer block). None: every leaf is a layer.

    Returns:
      Tree like `scores` of floats for `make_masks`, 0.0 for leaves that are not pruned. In total exactly
      `round(sparsity * n)` of the n prunable weights are pruned.

    Raises:
      ValueError: if the sparsity is outside [0, 1), M or lam is below 0, scores are traced, or there is nothing
        to prune.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> scores = {"flat": jnp.ones((5, 20)), "spiky": jnp.ones((5, 20)).at[0, 0].set(50)}
      >>> jp.allocate.owl(scores, 0.5)
      {'flat': 0.58, 'spiky': 0.42}

    References:
      Yin et al., Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High
      Sparsity, 2023, arXiv:2310.05175.
    """
    sparsity = known_share(sparsity)
    for name, value in (("M", M), ("lam", lam)):
        if not value >= 0:
            raise ValueError(f"`{name}` must be at least 0, got {value!r}.")
    paths, leaves, _ = flatten_with_paths(scores)
    chosen = prunable_leaves(scores, where)
    if any(isinstance(leaves[i], Tracer) for i in chosen):
        raise ValueError("`scores` must be known numbers, got traced arrays: call `owl` outside of jit.")
    names = [paths[i] if layer is None else layer(paths[i]) for i in chosen]
    members: dict[str, list[jax.Array]] = {}
    for name, i in zip(names, chosen, strict=True):
        members.setdefault(name, []).append(leaves[i])
    with jax.ensure_compile_time_eval():  # known scores may be asked about inside jit
        outliers = {
            name: _outliers(parts, M) for name, parts in members.items() if sum(p.size for p in parts)
        }
    low, high = min(outliers.values(), default=0.0), max(outliers.values(), default=0.0)
    rise = [2 * lam * (outliers.get(n, low) - low) / (high - low) if high > low else 0.0 for n in names]

    def shares(sizes: list[int], shapes: list[Shape], total: int) -> list[float]:
        del shapes
        kept = sum(sizes) - total
        low, high = -max(rise), 1.0
        for _ in range(100):
            middle = (low + high) / 2
            found = sum(n * min(max(middle + r, 0.0), 1.0) for n, r in zip(sizes, rise, strict=True))
            low, high = (low, middle) if found >= kept else (middle, high)
        return [1 - min(max(high + r, 0.0), 1.0) for r in rise]

    return allocation(scores, sparsity, where, shares)


def _outliers(parts: list[jax.Array], M: float) -> float:
    size = sum(part.size for part in parts)
    parts = [jnp.asarray(part).astype(jnp.float32) for part in parts]
    finite = [jnp.isfinite(part) for part in parts]  # an inf is an outlier, whatever the mean
    counted = sum(int(jnp.sum(where)) for where in finite)
    mean = sum(float(jnp.sum(p, where=where)) for p, where in zip(parts, finite, strict=True)) / max(
        counted, 1
    )
    return sum(int(jnp.sum(part > M * mean)) for part in parts) / size
