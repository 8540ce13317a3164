"""Network slimming: an L1 penalty on the scales of norm layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.lookahead import refuse_pair
from jaxprune.masking import Criterion
from jaxprune.params import PyTree, prunable, prunable_leaves
from jaxprune.transforms._masked import check_given, masked_update, without_past
from jaxprune.transforms._placeholder import mappable


class SlimmingState(NamedTuple):
    """masks: all True until `jp.replace_masks`; inner_state: that of the wrapped optimizer."""

    masks: PyTree
    inner_state: Any


def norm_scales(params: PyTree) -> PyTree:
    """Tree of Python bools: which leaves are named `scale` or `gamma`, the names of norm scales in Flax and Haiku.

    Raises:
      ValueError: if there is none.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> jp.sparse_training.norm_scales({"BatchNorm_0": {"scale": jnp.ones(2), "bias": jnp.ones(2)}})
      {'BatchNorm_0': {'bias': False, 'scale': True}}
    """
    return prunable(params, include=r"(.*/)?(scale|gamma)")


def slimming(
    inner: optax.GradientTransformation, strength: float, *, where: PyTree | None = None
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it adds the penalty `strength * sum |gamma|` over the scales of norm layers.

    The subgradient `strength * sign(gamma)` is added to the gradient, as in the paper. Channels whose scales
    have become small are pruned afterwards. This penalty makes no scale exactly zero. The proximal steps of
    `group_lasso` with `structure=jp.Unstructured(), where=norm_scales(params)` do.

    Args:
      inner: any optax optimizer.
      strength: lambda, at least 0; the paper uses 1e-4 or 1e-5.
      where: the scales: a tree of bools, a prefix of one, or a function of the parameters that returns
        one; None for `norm_scales(params)`.

    Returns:
      A transformation whose state is a `SlimmingState`. Its masks, one for each scale, prune nothing until
      `jp.replace_masks` sets them.

    Raises:
      ValueError: if the strength is negative; at `init`, if there are no scales; if `params` is not passed to
        `update`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"scale": jnp.array([2.0, -1.0]), "bias": jnp.ones(2)}
      >>> tx = jp.sparse_training.slimming(optax.sgd(1.0), 0.5)
      >>> updates, _ = tx.update({"scale": jnp.zeros(2), "bias": jnp.zeros(2)}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["scale"]
      Array([ 1.5, -0.5], dtype=float32)

    References:
      Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017, arXiv:1708.06519.
    """
    inner = optax.with_extra_args_support(inner)
    if not strength >= 0:
        raise ValueError(f"`strength` must be at least 0, got {strength}.")

    def scales(params: PyTree) -> list[int]:
        return prunable_leaves(params, norm_scales(params) if where is None else where)

    def init_fn(params: PyTree) -> SlimmingState:
        refuse_pair(params, "slimming")
        return SlimmingState(Criterion().units(params, scales(params)).full_masks(), inner.init(params))

    def update_fn(updates: PyTree, state: SlimmingState, params: PyTree | None = None, **extra_args: Any):
        check_given(params)
        weights, (steps, treedef) = jax.tree.leaves(params), jax.tree.flatten(updates)
        for i in scales(params):
            steps[i] = steps[i] + (strength * jnp.sign(weights[i])).astype(steps[i].dtype)
        updates = jax.tree.unflatten(treedef, steps)
        inner_state = without_past(inner, state.inner_state, params, state.masks)
        updates, inner_state = masked_update(inner, updates, inner_state, params, state.masks, extra_args)
        return updates, SlimmingState(state.masks, inner_state)

    return optax.GradientTransformationExtraArgs(mappable(init_fn, SlimmingState, inner), update_fn)
