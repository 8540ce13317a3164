"""Static random masks: the control experiment of sparse training."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxprune.deprecated import key_was_first
from jaxprune.masking import make_masks
from jaxprune.meshes import placed_like
from jaxprune.params import PyTree, is_float_array
from jaxprune.scores import random
from jaxprune.structures import Structure, Unstructured
from jaxprune.transforms._masked import masked


@key_was_first
def random_masks(
    params: PyTree,
    sparsity: Any,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    *,
    key: jax.Array,
) -> PyTree:
    """Masks that prune exactly `round(s_l * n_l)` of the n_l units of each leaf, at random positions.

    Args:
      params: pytree of arrays.
      sparsity: fraction s of every leaf to prune, in [0, 1), or a tree of them (an allocation).
      structure: how weights form units.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.
      key: a `jax.random.key`.

    Returns:
      Tree like `params` of masks.

    Raises:
      ValueError: as `make_masks` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> masks = jp.sparse_training.random_masks({"w": jnp.ones((4, 5))}, 0.75, key=jax.random.key(0))
      >>> int(masks["w"].sum())
      5
    """
    scores = jax.tree.map(
        lambda score, w: placed_like(score, w) if is_float_array(w) else score, random(params, key), params
    )
    return make_masks(scores, sparsity, scope="local", structure=structure, where=where)


def static(
    inner: optax.GradientTransformation,
    sparsity: Any,
    *,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains under random masks that never change.

    This is the baseline for `set` and `rigl`: the same number of weights in each layer, at random positions.
    `jp.masked` does the same with masks of your own.

    Args:
      inner: any optax optimizer.
      sparsity: fraction of each leaf to prune, in [0, 1), or a tree of them (an allocation).
      structure: how weights form units.
      where: the leaves to prune: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `prunable(params)`.
      key: a `jax.random.key`; may be traced: under `vmap` over replicates build the wrapper inside.

    Returns:
      A transformation whose state is a `MaskedState`.

    Raises:
      ValueError: at `init`, as `make_masks` does; if `params` is not passed to `update`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> tx = jp.sparse_training.static(optax.sgd(0.1), 0.5, key=jax.random.key(0))
      >>> int(jp.get_masks(tx.init({"w": jnp.ones((2, 4))}))["w"].sum())
      4

    References:
      Mocanu et al., A topological insight into restricted Boltzmann machines, 2016, arXiv:1604.05978.
      Liu et al., The Unreasonable Effectiveness of Random Pruning, 2022, arXiv:2202.02643.
    """
    return masked(inner, lambda params: random_masks(params, sparsity, structure, where, key=key))
