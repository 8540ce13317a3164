"""N:M training from scratch: straight-through gradients with sparse-refined decay."""

from __future__ import annotations

import optax

from jaxprune.params import PyTree
from jaxprune.sparse_training._ste import ste
from jaxprune.structures import NM


def sr_ste(
    inner: optax.GradientTransformation,
    structure: NM,
    *,
    decay: float = 2e-4,
    every: int = 1,
    where: PyTree | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains all weights through their n:m pattern: `g + decay (1 - m) w`.

    Compute the loss at `straight_through(params, jp.get_masks(opt_state))`. The masks keep the n largest of every
    m weights along the input axis, for the weights after each update. The decay pulls pruned weights to zero,
    so that the pattern becomes stable. It is added to the gradient, as in the paper, and so enters the moments
    of the optimizer. Deploy `jp.apply_masks(params, jp.get_masks(opt_state))`.

    Args:
      inner: any optax optimizer.
      structure: the pattern, such as `jp.NM(2, 4)`.
      decay: lambda_W of the paper, for pruned weights only.
      every: number of steps between two updates of the masks.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.

    Returns:
      A transformation whose state is an `STEState`.

    Raises:
      TypeError: if the structure is not an `NM`.
      ValueError: at `init`, if m does not divide the axis of a leaf; if `params` is not passed to `update`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[4.0], [3.0], [2.0], [1.0]])}
      >>> tx = jp.sparse_training.sr_ste(optax.sgd(1.0), jp.NM(2, 4), decay=0.5)
      >>> updates, state = tx.update({"w": jnp.zeros((4, 1))}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"][:, 0]
      Array([4. , 3. , 1. , 0.5], dtype=float32)

    References:
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021,
      arXiv:2102.04010.
    """
    if getattr(structure, "fixed_sparsity", None) is None:
        raise TypeError(f"`structure` must be a pattern such as NM(2, 4), got {structure!r}: see `ste`.")
    return ste(
        inner, structure.sparsity, decay=decay, every=every, scope="local", structure=structure, where=where
    )
