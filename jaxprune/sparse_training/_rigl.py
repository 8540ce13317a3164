"""The rigged lottery: drop by magnitude, grow where the gradient is largest."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxprune.params import PyTree
from jaxprune.scores import magnitude
from jaxprune.sparse_training._dynamic import dynamic
from jaxprune.structures import Structure, Unstructured


def rigl(
    inner: optax.GradientTransformation,
    sparsity: Any = None,
    *,
    end: int,
    every: int = 100,
    fraction: float = 0.3,
    masks: PyTree | None = None,
    structure: Structure = Unstructured(),
    where: PyTree | None = None,
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimizer so that it trains a fixed number of weights of each layer and moves them where it helps.

    At the steps t = every, 2 every, ... before `end`, `round(f_t k)` of the k kept weights of each layer go,
    those of smallest magnitude, and as many come, where `|dL/dw|` is largest:
    `f_t = fraction / 2 (1 + cos(pi t / end))`.

    The gradient of the loss at masked parameters is dense as it comes in, pruned weights included, so no
    other is asked for; it is looked at in the steps that move masks only. Give it unmasked, and put this
    wrapper outermost.

    As in the paper, a step that moves masks moves nothing else (the inner optimizer and its step count wait),
    new weights start at 0 with their moments as the optimizer's `init` has them, and candidates are all
    weights not kept after the drop: one that was just dropped may come back, and then keeps its value and
    its moments. Memory that is no array of the parameter's shape (adafactor's rows and columns) is left.

    Args:
      inner: any optax optimizer.
      sparsity: the share of each leaf to prune, in [0, 1), or a tree of shares (an allocation), for random
        masks to begin with.
      end: step from which on the masks stay; the paper takes three quarters of the training.
      every: steps from one move to the next.
      fraction: share of the kept weights that moves at first.
      masks: masks to begin with, instead of `sparsity`: a tree, a prefix of one, or a function of the parameters.
      structure: what a unit is; not `NM`. A unit's magnitude and gradient are the means over its weights.
      where: tree of bools (or a prefix of one, or a function that gives it), the leaves that move;
        None for `prunable(params)`, or the leaves `masks` prune.
      key: for the random masks; also a traced one: under `vmap` over replicates build the wrapper inside.

    Returns:
      A transformation whose state is a `DynamicState`.

    Raises:
      ValueError: neither or both of `sparsity` and `masks`; `sparsity` without a `key`; a fraction outside
        [0, 1]; at `init`, as `make_masks` does; no `params` at `update`.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import jaxprune as jp
      >>> params = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0]])}
      >>> grads = {"w": jnp.array([[0.0, 0.0, -2.0, 1.0]])}
      >>> masks = {"w": jnp.array([[True, True, False, False]])}
      >>> tx = jp.sparse_training.rigl(optax.sgd(0.1), masks=masks, end=10, every=1, fraction=0.6)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params["w"])
      [[4. 3. 0. 0.]]
      [[4. 0. 0. 0.]]
      [[4. 0. 0. 0.]]
      >>> jp.get_masks(state)["w"].astype(int)
      Array([[1, 0, 1, 0]], dtype=int32)

    References:
      Evci et al., Rigging the Lottery: Making All Tickets Winners, 2019, arXiv:1911.11134.
    """

    def grow(updates: PyTree, params: PyTree, step: jax.Array) -> PyTree:
        del params, step
        return magnitude(updates)

    return dynamic(inner, grow, sparsity, masks, end, every, fraction, structure, where, key)
